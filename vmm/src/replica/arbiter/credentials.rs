//! What proves to each other who an etcd server and this side are.
//!
//! Owns the reading of certificate files, again for each question, so that certificates may be
//! renewed while a VM runs for years. Nothing in them can make the client below panic: a key that
//! does not fit its certificate is found here.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use crate::config::EtcdTls;
use crate::error::Error;

/// Bytes that a file of certificates may have; the one with all public authorities has a quarter.
const FILE_LENGTH_MAX: u64 = 1 << 20;

/// Reads the files of `tls`.
///
/// # Errors
/// A sentence that names the file that is missing, unreadable or does not fit.
pub(super) fn read_credentials(tls: &EtcdTls) -> Result<TlsConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let authorities = certificates(&tls.ca)?;
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(authorities.iter().cloned());
    if usable == 0 {
        return Err(wrong(&tls.ca, "holds no certificate of an authority"));
    }
    let client = match &tls.client {
        Some((cert, key)) => Some(client_certificate(&provider, cert, key)?),
        None => None,
    };
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(for_client(&authorities))))
        .client_cert(client)
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

fn client_certificate(
    provider: &Arc<CryptoProvider>,
    cert: &Path,
    key: &Path,
) -> Result<ClientCert, Error> {
    let chain = certificates(cert)?;
    let text = read_bounded(key)?;
    let unreadable = |why: String| wrong(key, &format!("holds no private key: {why}"));
    let der =
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Arbiter(format!("TLS cannot be used here: {error}")))?
        .with_root_certificates(RootCertStore::empty())
        .with_client_auth_cert(chain.clone(), der)
        .map_err(|error| {
            wrong(key, &format!("is not the key of the certificate in {}: {error}", cert.display()))
        })?;
    let own = PrivateKey::from_pem(&text).map_err(|error| unreadable(error.to_string()))?;
    Ok(ClientCert::new_with_certs(&for_client(&chain), own))
}

fn for_client(certificates: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    certificates.iter().map(|one| Certificate::from_der(one).to_owned()).collect()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read_bounded(path)?;
    let found = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong(path, "holds no certificate; a PEM file is needed")),
        Err(error) => Err(wrong(path, &format!("cannot be read as PEM: {error}"))),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_LENGTH_MAX + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 <= FILE_LENGTH_MAX => Ok(text),
        Ok(_) => Err(wrong(path, "has more than 1 MiB")),
        Err(error) => Err(wrong(path, &format!("cannot be read: {error}"))),
    }
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::Arbiter(format!("{}, which the arbiter in etcd needs, {what}", path.display()))
}
