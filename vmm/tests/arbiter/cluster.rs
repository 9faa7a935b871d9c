//! What only a cluster, or only TLS, can do wrong.

use std::time::{Duration, Instant};

use vmm::config::EtcdTls;
use vmm::replica::{Arbiter, EtcdArbiter, Verdict};

use crate::server::{Certificates, Etcd, etcd_binary};
use crate::{SOON, insist, question, until_it_can_be_asked};

#[test]
fn a_majority_decides_and_a_minority_says_neither_yes_nor_no() {
    let Some(binary) = etcd_binary() else { return };
    let mut etcd = Etcd::start(&binary, 3, false);
    let client = EtcdArbiter::new(&etcd.config()).unwrap();
    until_it_can_be_asked(&client);
    assert_eq!(client.claim(&question(2, 1)).unwrap(), Verdict::Won);
    // Whichever member is asked, the answer is the same.
    for index in 0..3 {
        let port = etcd.address(index).port();
        let one = EtcdArbiter::new(&etcd.config_by([port])).unwrap();
        assert_eq!(insist(&one, &question(2, 2)), Verdict::Lost);
    }
    etcd.kill(0);
    assert_eq!(insist(&client, &question(2, 1)), Verdict::Won);
    assert_eq!(insist(&client, &question(3, 2)), Verdict::Won);
    etcd.freeze(1);
    client.claim(&question(4, 1)).unwrap_err();
    client.claim(&question(2, 1)).unwrap_err();
    client.check().unwrap_err();
    etcd.thaw(1);
    assert_eq!(insist(&client, &question(3, 1)), Verdict::Lost);
    etcd.restart(0);
    let port = etcd.address(0).port();
    let returned = EtcdArbiter::new(&etcd.config_by([port])).unwrap();
    assert_eq!(insist(&returned, &question(3, 1)), Verdict::Lost);
}

/// An arbiter whose client has these certificates.
fn client(etcd: &Etcd, tls: Option<EtcdTls>) -> EtcdArbiter {
    EtcdArbiter::new(&vmm::config::EtcdConfig { tls, ..etcd.config() }).unwrap()
}

#[test]
fn who_cannot_prove_who_he_is_gets_no_answer() {
    let Some(binary) = etcd_binary() else { return };
    let etcd = Etcd::start(&binary, 1, true);
    let right = etcd.config().tls.unwrap();
    until_it_can_be_asked(&client(&etcd, Some(right.clone())));
    let strangers = Certificates::make(&etcd.folder().join("strangers"), "127.0.0.1");
    let cases = [
        ("no TLS at all", None, ""),
        (
            "an authority that has not signed the server's certificate",
            Some(EtcdTls { ca: strangers.ca.clone(), ..right.clone() }),
            "certificate",
        ),
        ("no certificate", Some(EtcdTls { client: None, ..right.clone() }), ""),
        (
            "a certificate that the server's authority has not signed",
            Some(EtcdTls { client: Some(strangers.client), ..right.clone() }),
            "",
        ),
    ];
    for (what, tls, reason) in cases {
        let arbiter = client(&etcd, tls);
        let error = arbiter.claim(&question(2, 1)).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.is_empty(), "{what}: {error}");
        let error = arbiter.check().unwrap_err().to_string();
        println!("{what}: {error}");
        assert!(error.starts_with("the arbiter in etcd at "), "{what}: {error}");
    }
    // Nothing of all that was a claim.
    assert_eq!(insist(&client(&etcd, Some(right)), &question(2, 2)), Verdict::Won);
}

#[test]
fn a_server_with_another_name_is_not_believed() {
    let Some(binary) = etcd_binary() else { return };
    let etcd = Etcd::start(&binary, 1, true);
    let mut config = etcd.config();
    until_it_can_be_asked(&EtcdArbiter::new(&config).unwrap());
    config.endpoints[0].host = "localhost".into();
    let error = EtcdArbiter::new(&config).unwrap().claim(&question(2, 1)).unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn files_that_do_not_fit_are_told_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let good = Certificates::make(&folder.path().join("good"), "127.0.0.1");
    let other = Certificates::make(&folder.path().join("other"), "127.0.0.1");
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let missing = folder.path().join("missing");
    let (cert, key) = good.client.clone();
    let cases = [
        (missing.clone(), None, "missing, which the arbiter in etcd needs, cannot be read"),
        (empty.clone(), None, "holds no certificate"),
        (broken, None, "holds no certificate of an authority"),
        (key.clone(), None, "holds no certificate"),
        (good.ca.clone(), Some((missing, key)), "cannot be read"),
        (good.ca.clone(), Some((cert.clone(), empty)), "holds no private key"),
        (good.ca.clone(), Some((cert.clone(), cert.clone())), "holds no private key"),
        (good.ca, Some((cert, other.client.1)), "is not the key of the certificate"),
    ];
    for (ca, client, reason) in cases {
        let tls = Some(EtcdTls { ca, client });
        let config = vmm::config::EtcdConfig {
            endpoints: vec!["127.0.0.1:1".parse().unwrap()],
            prefix: "/ft".into(),
            tls,
        };
        let error = EtcdArbiter::new(&config).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn certificates_may_be_renewed_or_away_for_a_while_under_a_client_that_lives_on() {
    let Some(binary) = etcd_binary() else { return };
    let mut etcd = Etcd::start(&binary, 1, true);
    let own = etcd.folder().join("own");
    etcd.certificates().copy_clients_to(&own);
    let tls = EtcdTls {
        ca: own.join("ca.pem"),
        client: Some((own.join("client.pem"), own.join("client-key.pem"))),
    };
    let arbiter = client(&etcd, Some(tls));
    until_it_can_be_asked(&arbiter);
    let aside = etcd.folder().join("aside");
    std::fs::rename(&own, &aside).unwrap();
    assert_eq!(arbiter.claim(&question(2, 1)).unwrap(), Verdict::Won);
    std::fs::rename(&aside, &own).unwrap();
    // A new authority and new certificates, at the same paths.
    let renewed = Certificates::make(&etcd.folder().join("tls"), "127.0.0.1");
    etcd.kill(0);
    etcd.restart(0);
    // Its port is open before it speaks.
    let begun = Instant::now();
    loop {
        let error = arbiter.claim(&question(2, 2)).unwrap_err().to_string();
        if error.contains("certificate") {
            break;
        }
        assert!(begun.elapsed() < SOON, "{error}");
    }
    renewed.copy_clients_to(&own);
    assert_eq!(insist(&arbiter, &question(2, 2)), Verdict::Lost);
}

#[test]
fn keys_lie_where_the_prefix_says_and_have_no_lease() {
    let Some(binary) = etcd_binary() else { return };
    let etcd = Etcd::start(&binary, 1, false);
    let mut config = etcd.config();
    let first = EtcdArbiter::new(&config).unwrap();
    until_it_can_be_asked(&first);
    config.prefix = "/another".into();
    let second = EtcdArbiter::new(&config).unwrap();
    // Two prefixes are two arbiters, whether that was meant or not.
    assert_eq!(first.claim(&question(2, 1)).unwrap(), Verdict::Won);
    assert_eq!(second.claim(&question(2, 2)).unwrap(), Verdict::Won);
    let body = r#"{"key":"Lw==","range_end":"MA=="}"#;
    let url = format!("http://{}/v3/kv/range", etcd.address(0));
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(10))).build().into();
    let text = agent.post(url).send(body).unwrap().into_body().read_to_string().unwrap();
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found["count"], "2", "{found}");
    for entry in found["kvs"].as_array().unwrap() {
        assert!(entry.get("lease").is_none_or(|lease| lease == "0"), "{entry}");
    }
}
