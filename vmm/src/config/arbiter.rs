//! Who decides which replica goes on, as the user says it: `arbiter=` and the fields that belong
//! to it, and the rules that make an [`Arbiter`] of them.
//!
//! Opens, resolves and reads nothing: whether the arbiter can be asked is `crate::replica`'s
//! question.

use std::fmt;
use std::path::{Path, PathBuf};

use super::options::{Options, OptionsText, read_list};
use super::{ConfigError, PeerAddress};

/// The name of the option, for messages.
const OPTION: &str = "--ft";
const EXPECTED: &str = "file:PATH, etcd:http://HOST:PORT, etcd:https://HOST:PORT or none";
const ENDPOINTS_MAX: usize = 16;
const PREFIX_LENGTH_MAX: usize = 200;
/// Bytes of everything that is said of one arbiter; a primary's hello has room for no more.
const TEXT_LENGTH_MAX: usize = 4096;

/// Who decides which of two replicas goes on when they lose each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// Files created exclusively in a directory of storage both hosts share.
    File {
        /// The directory, absolute.
        path: PathBuf,
    },
    /// Keys created exclusively in an etcd cluster.
    Etcd(EtcdConfig),
    /// Nobody: each replica that loses the other goes on. Two may live.
    None,
}

/// How an etcd cluster is reached, and where its keys for us are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Members of the cluster, asked in turn; at least one.
    pub endpoints: Vec<PeerAddress>,
    /// What our keys begin with; no slash at its end.
    pub prefix: String,
    /// `https` if there is one, `http` if not.
    pub tls: Option<EtcdTls>,
}

/// The files with which both ends of a TLS connection prove who they are. All PEM, absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authorities one of which has signed the servers' certificates.
    pub ca: PathBuf,
    /// This side's certificate (chain) and its key, if the servers ask for them.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The fields that say what an [`Arbiter`] is, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ArbiterFields {
    pub(super) arbiter: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Arbiter {
    /// The `--ft` fields that [`Arbiter::parse`] reads back as the same arbiter.
    pub fn to_options(&self) -> String {
        let fields = ArbiterFields::from(self);
        let mut text = OptionsText::default();
        fields.print(&mut text);
        text.finish()
    }

    /// Reads `arbiter=…` and the fields that belong to it, and no others.
    ///
    /// # Errors
    /// A sentence for everything that is missing, unreadable or contradictory.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut options = Options::parse(OPTION, text)?;
        let fields = ArbiterFields::take(&mut options);
        options.finish(&[])?;
        fields.read()?.ok_or_else(|| missing("arbiter", "Say which arbiter is meant."))
    }
}

impl EtcdConfig {
    /// What keys begin with unless the user says otherwise.
    pub const PREFIX_DEFAULT: &'static str = "/ft";

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl fmt::Display for Arbiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arbiter::File { path } => write!(f, "file:{}", path.display()),
            Arbiter::Etcd(etcd) => write!(f, "etcd:{etcd}"),
            Arbiter::None => f.write_str("none"),
        }
    }
}

impl fmt::Display for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme();
        let urls: Vec<_> =
            self.endpoints.iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        match urls.as_slice() {
            [url] => f.write_str(url),
            urls => write!(f, "[{}]", urls.join(",")),
        }
    }
}

impl ArbiterFields {
    pub(super) fn take(options: &mut Options) -> Self {
        ArbiterFields {
            arbiter: options.take("arbiter"),
            prefix: options.take("arbiter_prefix"),
            ca: options.take("arbiter_ca").map(PathBuf::from),
            cert: options.take("arbiter_cert").map(PathBuf::from),
            key: options.take("arbiter_key").map(PathBuf::from),
        }
    }

    pub(super) fn print(&self, text: &mut OptionsText) {
        text.push_some("arbiter", self.arbiter.as_ref());
        text.push_some("arbiter_prefix", self.prefix.as_ref());
        text.push_some("arbiter_ca", self.ca.as_ref().map(|path| path.display()));
        text.push_some("arbiter_cert", self.cert.as_ref().map(|path| path.display()));
        text.push_some("arbiter_key", self.key.as_ref().map(|path| path.display()));
    }

    /// The arbiter these fields mean, if they mean one.
    pub(super) fn read(&self) -> Result<Option<Arbiter>, ConfigError> {
        let Some(text) = self.arbiter.as_deref() else {
            self.refuse_fields_of_etcd("Say arbiter=etcd:…, too, or leave it out.")?;
            return Ok(None);
        };
        let arbiter = match text.split_once(':') {
            _ if text == "none" => Arbiter::None,
            Some(("file", path)) if !path.is_empty() => read_file(text, path)?,
            Some(("etcd", servers)) if !servers.is_empty() => {
                Arbiter::Etcd(self.read_etcd(text, servers)?)
            }
            Some(_) | None => return Err(bad_value("arbiter", text, EXPECTED)),
        };
        if !matches!(arbiter, Arbiter::Etcd(_)) {
            self.refuse_fields_of_etcd(&format!("Leave it out with arbiter={text}."))?;
        }
        let length = arbiter.to_options().len();
        if length > TEXT_LENGTH_MAX {
            return Err(ConfigError::contradiction(format!(
                "--ft: arbiter= and the fields that belong to it have {length} bytes, more than \
                 {TEXT_LENGTH_MAX}: use shorter paths or fewer servers."
            )));
        }
        Ok(Some(arbiter))
    }

    fn refuse_fields_of_etcd(&self, advice: &str) -> Result<(), ConfigError> {
        let given = [
            ("arbiter_prefix", self.prefix.is_some()),
            ("arbiter_ca", self.ca.is_some()),
            ("arbiter_cert", self.cert.is_some()),
            ("arbiter_key", self.key.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::contradiction(format!(
                "--ft: {key}= belongs to an arbiter in etcd. {advice}"
            ))),
        }
    }

    fn read_etcd(&self, text: &str, servers: &str) -> Result<EtcdConfig, ConfigError> {
        let servers = read_list(servers);
        let endpoints: Vec<_> = servers
            .iter()
            .map(|server| self.read_endpoint(text, server))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(bad_value("arbiter", text, EXPECTED));
        }
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(ConfigError::contradiction(format!(
                "--ft: arbiter= names {} servers, more than {ENDPOINTS_MAX}: a few members of the \
                 cluster are enough.",
                endpoints.len()
            )));
        }
        Ok(EtcdConfig { endpoints, prefix: self.read_prefix()?, tls: self.read_tls()? })
    }

    /// One server. Without `http://` or `https://` it is the latter if there is an authority to
    /// check it with.
    fn read_endpoint(&self, text: &str, server: &str) -> Result<PeerAddress, ConfigError> {
        let encrypted = self.ca.is_some();
        let address = match server.split_once("://") {
            None => server,
            Some(("https", address)) if encrypted => address,
            Some(("http", address)) if !encrypted => address,
            Some(("https", _)) => {
                return Err(missing(
                    "arbiter_ca",
                    "With https:// say which authority has signed the servers' certificates: \
                     arbiter_ca=FILE. For one that everybody knows that is \
                     /etc/ssl/certs/ca-certificates.crt.",
                ));
            }
            Some(("http", _)) => {
                return Err(ConfigError::contradiction(format!(
                    "--ft: arbiter={text} and arbiter_ca= contradict each other: http:// is not \
                     encrypted. Say https:// for every server, or leave the certificates out."
                )));
            }
            Some(_) => return Err(bad_value("arbiter", text, EXPECTED)),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        address.parse().map_err(|_| {
            bad_value(
                "arbiter",
                text,
                "etcd:https://HOST:PORT, or etcd:[https://HOST:PORT,https://HOST:PORT] for several \
                 servers,",
            )
        })
    }

    fn read_prefix(&self) -> Result<String, ConfigError> {
        let Some(given) = self.prefix.as_deref() else {
            return Ok(EtcdConfig::PREFIX_DEFAULT.to_owned());
        };
        let prefix = given.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
        if prefix.is_empty() || prefix.len() > PREFIX_LENGTH_MAX || !prefix.chars().all(plain) {
            return Err(bad_value(
                "arbiter_prefix",
                given,
                "what keys in etcd are to begin with, such as /ft (letters, digits and / . - _, \
                 at most 200),",
            ));
        }
        Ok(prefix.to_owned())
    }

    fn read_tls(&self) -> Result<Option<EtcdTls>, ConfigError> {
        let files =
            [("arbiter_ca", &self.ca), ("arbiter_cert", &self.cert), ("arbiter_key", &self.key)];
        for (key, path) in files {
            if let Some(path) = path.as_deref().filter(|path| !path.is_absolute()) {
                return Err(ConfigError::contradiction(format!(
                    "--ft: {key}={} is not absolute: the backup looks for its file at the same \
                     path, so the path must start with /.",
                    path.display()
                )));
            }
        }
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => {
                return Err(missing("arbiter_key", "A certificate is of no use without its key."));
            }
            (None, Some(_)) => {
                return Err(missing("arbiter_cert", "A key is of no use without its certificate."));
            }
        };
        match (&self.ca, client) {
            (Some(ca), client) => Ok(Some(EtcdTls { ca: ca.clone(), client })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(missing(
                "arbiter_ca",
                "A certificate is shown to a server that has shown its own: say which authority \
                 has signed that.",
            )),
        }
    }
}

impl From<&Arbiter> for ArbiterFields {
    fn from(arbiter: &Arbiter) -> Self {
        let mut fields = ArbiterFields { arbiter: Some(arbiter.to_string()), ..Self::default() };
        match arbiter {
            Arbiter::File { .. } | Arbiter::None => {}
            Arbiter::Etcd(EtcdConfig { prefix, tls, .. }) => {
                fields.prefix = Some(prefix.clone());
                if let Some(EtcdTls { ca, client }) = tls {
                    fields.ca = Some(ca.clone());
                    (fields.cert, fields.key) = client.clone().unzip();
                }
            }
        }
        fields
    }
}

fn read_file(text: &str, path: &str) -> Result<Arbiter, ConfigError> {
    if !Path::new(path).is_absolute() {
        return Err(ConfigError::contradiction(format!(
            "--ft: arbiter={text} is not absolute: both hosts must mean the same file, so the path \
             must start with /."
        )));
    }
    Ok(Arbiter::File { path: PathBuf::from(path) })
}

fn missing(key: &str, advice: &str) -> ConfigError {
    ConfigError::Missing { option: OPTION.into(), key: key.into(), advice: advice.into() }
}

fn bad_value(key: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError::BadValue {
        option: OPTION.into(),
        key: key.into(),
        value: value.into(),
        expected: expected.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "arbiter_ca=/c/ca.pem";

    fn parse(text: &str) -> Arbiter {
        Arbiter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn etcd(text: &str) -> EtcdConfig {
        match parse(text) {
            Arbiter::Etcd(etcd) => etcd,
            other => panic!("{other:?}"),
        }
    }

    fn sentence(text: &str) -> String {
        Arbiter::parse(text).expect_err(text).to_string()
    }

    fn hosts(text: &str) -> Vec<String> {
        etcd(text).endpoints.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_server_or_several_are_read() {
        for one in ["etcd:a:2379", "etcd:http://a:2379", "etcd:http://a:2379/", "etcd:[a:2379]"] {
            assert_eq!(hosts(&format!("arbiter={one}")), ["a:2379"], "{one}");
        }
        assert_eq!(hosts("arbiter=etcd:[fd00::1]:2379"), ["[fd00::1]:2379"]);
        let two = ["10.0.0.1:2379", "[fd00::1]:1"];
        assert_eq!(hosts("arbiter=etcd:[http://10.0.0.1:2379,http://[fd00::1]:1]"), two);
        assert_eq!(hosts("arbiter=\"etcd:10.0.0.1:2379, [fd00::1]:1\""), two);
        let plain = etcd("arbiter=etcd:a:2379");
        assert_eq!((plain.tls.as_ref(), plain.prefix.as_str()), (None, "/ft"));
        assert_eq!(plain.to_string(), "http://a:2379");
    }

    #[test]
    fn an_authority_makes_it_https() {
        let ca = etcd(&format!("arbiter=etcd:[a:1,https://b:2],{TLS},arbiter_prefix=x/y/"));
        assert_eq!(ca.tls, Some(EtcdTls { ca: "/c/ca.pem".into(), client: None }));
        assert_eq!(ca.prefix, "x/y");
        assert_eq!(ca.to_string(), "[https://a:1,https://b:2]");
        let both =
            etcd(&format!("arbiter=etcd:https://a:1,{TLS},arbiter_cert=/c/c,arbiter_key=/c/k"));
        assert_eq!(both.tls.unwrap().client, Some(("/c/c".into(), "/c/k".into())));
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same_arbiter() {
        for text in [
            "arbiter=none",
            "arbiter=file:/shared/vm",
            "arbiter=etcd:http://a:2379,arbiter_prefix=/ft",
            "arbiter=\"etcd:[https://a:1,https://[::1]:2]\",arbiter_prefix=/p,arbiter_ca=/c a,\
             arbiter_cert=/cert,arbiter_key=/key",
        ] {
            assert_eq!(parse(text).to_options(), text);
        }
    }

    #[test]
    fn servers_that_cannot_be_meant_are_refused() {
        for bad in [
            "etcd:",
            "etcd:a",
            "etcd:a:0",
            "etcd:http://a",
            "etcd:ftp://a:1",
            "etcd:http://user:secret@a:1",
            "etcd:http://a:1/path",
            "etcd:[]",
            "etcd:[a:1,b]",
            "etcd:[a:1",
            "etcd",
            "zookeeper:a:1",
        ] {
            let said = sentence(&format!("arbiter=\"{bad}\""));
            assert!(said.starts_with(&format!("--ft: arbiter={bad} cannot be read: ")), "{said}");
        }
        let many = vec!["a:1"; 17].join(",");
        assert!(sentence(&format!("arbiter=etcd:[{many}]")).contains("17 servers, more than 16"));
        let long = format!("arbiter=file:/{}", "x".repeat(5000));
        assert!(sentence(&long).contains("have 5014 bytes, more than 4096"), "{}", sentence(&long));
    }

    #[test]
    fn encryption_is_never_half_meant() {
        let said = sentence("arbiter=etcd:https://a:1");
        assert!(said.starts_with("--ft: arbiter_ca= is missing. With https://"), "{said}");
        let said = sentence(&format!("arbiter=etcd:[https://a:1,http://b:1],{TLS}"));
        assert!(said.ends_with("or leave the certificates out."), "{said}");
        for (fields, lacking) in [
            ("arbiter_cert=/c,arbiter_ca=/a", "arbiter_key"),
            ("arbiter_key=/k,arbiter_ca=/a", "arbiter_cert"),
            ("arbiter_cert=/c,arbiter_key=/k", "arbiter_ca"),
        ] {
            let said = sentence(&format!("arbiter=etcd:a:1,{fields}"));
            assert!(said.starts_with(&format!("--ft: {lacking}= is missing.")), "{said}");
        }
        let said = sentence("arbiter=etcd:a:1,arbiter_ca=ca.pem");
        assert!(said.starts_with("--ft: arbiter_ca=ca.pem is not absolute"), "{said}");
    }

    #[test]
    fn fields_of_etcd_are_refused_elsewhere() {
        assert_eq!(
            sentence("arbiter=file:/a,arbiter_prefix=/x"),
            "--ft: arbiter_prefix= belongs to an arbiter in etcd. Leave it out with \
             arbiter=file:/a."
        );
        assert_eq!(
            sentence("arbiter_key=/k"),
            "--ft: arbiter_key= belongs to an arbiter in etcd. Say arbiter=etcd:…, too, or leave \
             it out."
        );
        for prefix in ["/", "a b", "ä", &"x".repeat(201)] {
            let said = sentence(&format!("arbiter=etcd:a:1,arbiter_prefix={prefix}"));
            assert!(said.starts_with("--ft: arbiter_prefix="), "{said}");
        }
    }
}
