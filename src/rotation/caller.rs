use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::warn;

use super::failure::AttemptError;
use crate::{
    ca::{CaError, CitadelClient, ClientCertificate, Way},
    clock,
    config::{CaAddress, MutualTls},
    identity::{Answer, BearerToken, SpiffeId, TokenError, X509Svid},
    status::Endpoint,
};

/// What the CA is asked.
pub(super) struct Request<'a> {
    pub(super) csr_pem: &'a str,
    /// The identity that the CSR is for.
    pub(super) id: &'a SpiffeId,
    pub(super) token: Result<&'a BearerToken, TokenError>,
    /// The certificate of this identity that we hold, if any.
    pub(super) own: Option<&'a X509Svid>,
    /// How long the answer may take.
    pub(super) answer: Duration,
}

/// Which certificate is presented.
enum Chosen {
    None,
    /// None, to see whether it was the certificate that the CA did not like.
    Suspected,
    Present(ClientCertificate),
}

/// Calls the CA with the credentials that we have: the token, and a client certificate where that is possible.
pub(super) struct Caller {
    ca: CitadelClient,
    /// Where it is told how the calls went.
    endpoint: Option<Arc<Endpoint>>,
    /// The certificate that the CA has refused: it is not presented again.
    refused: Option<[u8; 32]>,
    /// Certificates that were presented, beside a token, in a call that the CA answered with an authentication error,
    /// each with the identity that was asked for: the next call for the same one tells which of the two it was.
    suspects: Vec<(SpiffeId, [u8; 32])>,
    /// Whether the CA has refused the token alone since it accepted anything.
    refused_alone: bool,
    told_refused: bool,
    /// What is wrong with the certificate in PROV_CERT, once that was told.
    told_provisioned: Option<String>,
}

impl Caller {
    /// The way there.
    pub(super) fn way(&self) -> Way {
        self.ca.way()
    }

    /// Where it calls.
    pub(super) fn address(&self) -> &CaAddress {
        self.ca.address()
    }

    pub(super) fn new(ca: CitadelClient, endpoint: Option<Arc<Endpoint>>) -> Self {
        let (refused, suspects, told_provisioned) = (None, Vec::new(), None);
        Self { ca, endpoint, refused, suspects, refused_alone: false, told_refused: false, told_provisioned }
    }

    /// One attempt.
    pub(super) async fn attempt(&mut self, request: &Request<'_>) -> Result<Answer, AttemptError> {
        match (&request.token, self.certificate(request)?) {
            (Ok(token), Chosen::None) => Ok(self.ask(request, Some(token), None).await?),
            (Ok(token), Chosen::Suspected) => {
                let answer = self.ask(request, Some(token), None).await;
                // If the answer is another refusal, the next call is with both again. And then the first success says
                // nothing: whatever the CA needs to accept anybody, its API server for instance, may be back.
                let suspect = self.cleared(request.id);
                match (suspect, &answer) {
                    (Some(suspect), Ok(_)) if !self.refused_alone => {
                        self.refuse(suspect, &"it answers the token alone");
                    }
                    (_, answer) => self.refused_alone = answer.is_err(),
                }
                Ok(answer?)
            }
            (Ok(token), Chosen::Present(certificate)) => self.attempt_with_both(request, token, &certificate).await,
            (Err(error), Chosen::None | Chosen::Suspected) => Err(error.clone().into()),
            (Err(error), Chosen::Present(certificate)) => self
                .ask(request, None, Some(&certificate))
                .await
                .map_err(|ca| AttemptError::CertificateAlone { token: error.clone(), ca }),
        }
    }

    /// Takes back what was suspected in calls for this identity.
    fn cleared(&mut self, id: &SpiffeId) -> Option<[u8; 32]> {
        let at = self.suspects.iter().position(|(of, _)| of == id)?;
        Some(self.suspects.swap_remove(at).1)
    }

    /// One call.
    async fn ask(
        &self,
        request: &Request<'_>,
        token: Option<&BearerToken>,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Answer, CaError> {
        let start = Instant::now();
        let mut tls = None;
        let answer = self.ca.create_certificate(request.csr_pem, token, certificate, request.answer, &mut tls).await;
        if let Some(endpoint) = &self.endpoint {
            let error = answer.as_ref().err().map(|error| (error.to_string(), !error.is_away()));
            endpoint.called(clock::now(), start.elapsed(), error, tls.map(|tls| (tls.version, tls.group)));
        }
        answer
    }

    async fn attempt_with_both(
        &mut self,
        request: &Request<'_>,
        token: &BearerToken,
        certificate: &ClientCertificate,
    ) -> Result<Answer, AttemptError> {
        let answer = self.ask(request, Some(token), Some(certificate)).await;
        let Err(error) = answer else {
            self.refused_alone = false;
            return Ok(answer?);
        };
        if self.ca.config().mutual_tls != MutualTls::Auto || !error.is_authentication() {
            return Err(error.into());
        }
        if let CaError::ClientCertificateRefused(reason) = &error {
            // The CA has not seen the CSR: asking again at once costs it nothing.
            self.refuse(certificate.fingerprint(), reason);
            return Ok(self.ask(request, Some(token), None).await?);
        }
        self.cleared(request.id);
        // There are two identities at the most: what is held, and what is wanted.
        self.suspects.truncate(1);
        self.suspects.push((request.id.clone(), certificate.fingerprint()));
        Err(error.into())
    }

    /// The certificate to present: PROV_CERT's, else our own.
    fn certificate(&mut self, request: &Request<'_>) -> Result<Chosen, CaError> {
        let config = self.ca.config();
        let always = config.mutual_tls == MutualTls::Always;
        if config.mutual_tls == MutualTls::Never || self.ca.address().is_plaintext() {
            return Ok(Chosen::None);
        }
        let own = request.own.map(ClientCertificate::own);
        let certificate = match &config.provisioned {
            Some(directory) => match ClientCertificate::provisioned(directory, clock::now()) {
                Ok(certificate) => {
                    self.told_provisioned = None;
                    Some(certificate)
                }
                Err(error) if always => return Err(error),
                Err(error) => {
                    self.leave_out(&error);
                    own
                }
            },
            None => own,
        };
        let suspected =
            |print: [u8; 32]| self.suspects.iter().any(|(id, suspect)| id == request.id && *suspect == print);
        Ok(match certificate {
            Some(certificate) if always => Chosen::Present(certificate),
            Some(certificate) if self.refused == Some(certificate.fingerprint()) => Chosen::None,
            // With no token to fall back to, a suspicion must not keep us from the only credential that is left.
            Some(certificate) if request.token.is_ok() && suspected(certificate.fingerprint()) => Chosen::Suspected,
            Some(certificate) => Chosen::Present(certificate),
            None => Chosen::None,
        })
    }

    /// Tells once why the certificate in PROV_CERT is not presented.
    fn leave_out(&mut self, error: &CaError) {
        let told = error.to_string();
        if self.told_provisioned.as_ref() != Some(&told) {
            warn!("{told}; continuing with the token alone");
            self.told_provisioned = Some(told);
        }
    }

    fn refuse(&mut self, fingerprint: [u8; 32], reason: &dyn std::fmt::Display) {
        self.refused = Some(fingerprint);
        if !self.told_refused {
            self.told_refused = true;
            warn!("the CA rejected our client certificate ({reason}); continuing with the token alone");
        }
    }
}
