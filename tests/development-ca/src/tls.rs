//! The TLS server: versions, ALPN, client certificates.

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion, select_next_proto,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;

use crate::options::{CaOptions, ClientCertificates, TlsVersions};
use crate::pki::{Issued, Leaf, Pki};

/// One context for all connections, as a CA has: a client that kept a session could resume it at the next connection.
/// What can change between two connections is set for each.
pub(crate) struct TlsServer {
    context: SslContext,
}

impl TlsServer {
    pub(crate) fn new(options: &CaOptions, pki: &Pki) -> Result<TlsServer, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::tls_server())?;
        set_versions(&mut context, options.tls)?;
        options.groups.as_deref().map_or(Ok(()), |groups| context.set_groups_list(groups))?;
        if !options.server_chain.is_empty() {
            // The chain is sent as it is, whatever is in it.
            context.set_security_level(0);
        }
        let names: Vec<&str> = options.server_names.iter().map(String::as_str).collect();
        let leaf = options.server_leaf.clone().unwrap_or_else(|| Leaf::server(&names));
        let Issued { chain_pem, key_pem } = options.server_pki.as_deref().unwrap_or(pki).issue(&leaf);
        let chain = X509::stack_from_pem((chain_pem + &options.server_chain.concat()).as_bytes())?;
        let key: PKey<Private> = PKey::private_key_from_pem(key_pem.as_bytes())?;
        context.set_private_key(&key)?;
        if let Some((leaf, rest)) = chain.split_first() {
            context.set_certificate(leaf)?;
            rest.iter().try_for_each(|certificate| context.add_extra_chain_cert(certificate.clone()))?;
        }
        context.set_alpn_select_callback(|_, offered| {
            // gRPC speaks nothing else; answering without ALPN would only move the failure further on.
            select_next_proto(b"\x02h2", offered).ok_or(AlpnError::ALERT_FATAL)
        });
        trust_clients(&mut context, pki)?;
        Ok(TlsServer { context: context.build() })
    }

    /// `refuse` is asked when a client certificate arrives.
    pub(crate) fn session(
        &self,
        policy: ClientCertificates,
        refuse: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Ssl, ErrorStack> {
        let mut session = Ssl::new(&self.context)?;
        let mode = match policy {
            ClientCertificates::Off => return Ok(session),
            ClientCertificates::Accept => SslVerifyMode::PEER,
            ClientCertificates::Require => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        };
        session.set_verify_callback(mode, move |verified, chain| verified && !(chain.error_depth() == 0 && refuse()));
        Ok(session)
    }
}

fn set_versions(context: &mut SslContextBuilder, versions: TlsVersions) -> Result<(), ErrorStack> {
    let (min, max) = match versions {
        TlsVersions::Both => (SslVersion::TLS1_2, SslVersion::TLS1_3),
        TlsVersions::Only12 => (SslVersion::TLS1_2, SslVersion::TLS1_2),
        TlsVersions::Only13 => (SslVersion::TLS1_3, SslVersion::TLS1_3),
    };
    context.set_min_proto_version(Some(min))?;
    context.set_max_proto_version(Some(max))
}

fn trust_clients(context: &mut SslContextBuilder, pki: &Pki) -> Result<(), ErrorStack> {
    let client_ca = X509::stack_from_pem((pki.root_pem() + &pki.intermediates().concat()).as_bytes())?;
    let mut store = X509StoreBuilder::new()?;
    // Intermediates let a client that sends its leaf alone through, as Go's servers do with them in the pool.
    client_ca.iter().try_for_each(|certificate| store.add_cert(certificate.clone()))?;
    context.set_verify_cert_store(store.build())?;
    client_ca.first().map_or(Ok(()), |root| context.add_client_ca(root))?;
    // Without one, OpenSSL fails every attempt to resume a session that had a client certificate.
    context.set_session_id_context(b"development-ca")
}
