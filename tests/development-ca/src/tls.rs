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

/// The server's certificate and the roots for client certificates; a context is made for each connection, since the
/// policy can change between two.
pub(crate) struct TlsServer {
    chain: Vec<X509>,
    key: PKey<Private>,
    client_ca: Vec<X509>,
    versions: TlsVersions,
    groups: Option<String>,
    /// Whether nothing in the chain is looked at before it is sent.
    as_it_is: bool,
}

impl TlsServer {
    pub(crate) fn new(options: &CaOptions, pki: &Pki) -> Result<TlsServer, ErrorStack> {
        let names: Vec<&str> = options.server_names.iter().map(String::as_str).collect();
        let leaf = options.server_leaf.clone().unwrap_or_else(|| Leaf::server(&names));
        let Issued { chain_pem, key_pem } = options.server_pki.as_deref().unwrap_or(pki).issue(&leaf);
        let chain = chain_pem + &options.server_chain.concat();
        Ok(TlsServer {
            chain: X509::stack_from_pem(chain.as_bytes())?,
            as_it_is: !options.server_chain.is_empty(),
            key: PKey::private_key_from_pem(key_pem.as_bytes())?,
            client_ca: X509::stack_from_pem((pki.root_pem() + &pki.intermediates().concat()).as_bytes())?,
            versions: options.tls,
            groups: options.groups.clone(),
        })
    }

    /// `refuse` is asked when a client certificate arrives.
    pub(crate) fn session(
        &self,
        policy: ClientCertificates,
        refuse: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Ssl, ErrorStack> {
        let mut context = SslContext::builder(SslMethod::tls_server())?;
        self.set_versions(&mut context)?;
        self.groups.as_deref().map_or(Ok(()), |groups| context.set_groups_list(groups))?;
        if self.as_it_is {
            context.set_security_level(0);
        }
        context.set_private_key(&self.key)?;
        if let Some((leaf, rest)) = self.chain.split_first() {
            context.set_certificate(leaf)?;
            rest.iter().try_for_each(|certificate| context.add_extra_chain_cert(certificate.clone()))?;
        }
        context.set_alpn_select_callback(|_, offered| {
            // gRPC speaks nothing else; answering without ALPN would only move the failure further on.
            select_next_proto(b"\x02h2", offered).ok_or(AlpnError::ALERT_FATAL)
        });
        self.set_client_policy(&mut context, policy, refuse)?;
        Ssl::new(&context.build())
    }

    fn set_versions(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        let (min, max) = match self.versions {
            TlsVersions::Both => (SslVersion::TLS1_2, SslVersion::TLS1_3),
            TlsVersions::Only12 => (SslVersion::TLS1_2, SslVersion::TLS1_2),
            TlsVersions::Only13 => (SslVersion::TLS1_3, SslVersion::TLS1_3),
        };
        context.set_min_proto_version(Some(min))?;
        context.set_max_proto_version(Some(max))
    }

    fn set_client_policy(
        &self,
        context: &mut SslContextBuilder,
        policy: ClientCertificates,
        refuse: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<(), ErrorStack> {
        let mode = match policy {
            ClientCertificates::Off => return Ok(()),
            ClientCertificates::Accept => SslVerifyMode::PEER,
            ClientCertificates::Require => SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT,
        };
        let mut store = X509StoreBuilder::new()?;
        // Intermediates let a client that sends its leaf alone through, as Go's servers do with them in the pool.
        self.client_ca.iter().try_for_each(|certificate| store.add_cert(certificate.clone()))?;
        context.set_verify_cert_store(store.build())?;
        self.client_ca.first().map_or(Ok(()), |root| context.add_client_ca(root))?;
        // Without one, OpenSSL fails every attempt to resume a session that had a client certificate.
        context.set_session_id_context(b"development-ca")?;
        context.set_verify_callback(mode, move |verified, chain| verified && !(chain.error_depth() == 0 && refuse()));
        Ok(())
    }
}
