//! A client of the SPIFFE Workload API that keeps nothing to itself: each message and each status is seen as it comes.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use openssl::{
    pkey::{PKey, Private},
    x509::X509,
};
use sds_shim_proto::spiffe::{
    JwtsvidRequest, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
    spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Status, Streaming};

use crate::{Failure, OrFail, PATIENCE, POLL, fixture::Site, sds::Http2, unix};

/// The header that every call must carry.
pub const HEADER: (&str, &str) = ("workload.spiffe.io", "true");

/// One connection to the socket.
#[derive(Clone)]
pub struct WorkloadApi {
    service: SpiffeWorkloadApiClient<Http2>,
    header: Option<(&'static str, &'static str)>,
}

/// An open stream.
pub struct Updates<A>(Streaming<A>);

impl WorkloadApi {
    /// Connects once.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let sender = Http2::over(unix::connect(socket).await?).await?;
        let service = SpiffeWorkloadApiClient::with_origin(sender, http::Uri::from_static("http://localhost"));
        Ok(Self { service, header: Some(HEADER) })
    }

    /// Connects as soon as the socket is there.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn wait_for(socket: &Path) -> Result<Self, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::connect(socket).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => {
                    return Err(Failure::new(format!("no Workload API at {}: {error}", socket.display())));
                }
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// The same with another header, or none.
    #[must_use]
    pub fn with_header(self, header: Option<(&'static str, &'static str)>) -> Self {
        Self { header, ..self }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some((name, value)) = self.header {
            request.metadata_mut().insert(name, tonic::metadata::MetadataValue::from_static(value));
        }
        request
    }

    /// Opens `FetchX509SVID`.
    ///
    /// # Errors
    /// The status that the server answers instead of a stream.
    pub async fn svids(&self) -> Result<Updates<X509svidResponse>, Status> {
        let request = self.request(X509svidRequest {});
        Ok(Updates(self.service.clone().fetch_x509svid(request).await?.into_inner()))
    }

    /// Opens `FetchX509Bundles`.
    ///
    /// # Errors
    /// As for [`WorkloadApi::svids`].
    pub async fn bundles(&self) -> Result<Updates<X509BundlesResponse>, Status> {
        let request = self.request(X509BundlesRequest {});
        Ok(Updates(self.service.clone().fetch_x509_bundles(request).await?.into_inner()))
    }

    /// The status with which a stream of certificates ends before its first message.
    ///
    /// # Errors
    /// When a message comes.
    pub async fn refusal(&self) -> Result<Status, Failure> {
        match self.svids().await {
            Err(status) => Ok(status),
            Ok(mut updates) => updates.refusal().await,
        }
    }

    /// The first message, asked for until there is one.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn svid(&self) -> Result<(Svid, Updates<X509svidResponse>), Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = match self.svids().await {
                Ok(mut updates) => match updates.0.message().await {
                    Ok(Some(message)) => return Ok((Svid::only(message)?, updates)),
                    Ok(None) => return Err(Failure::new("the stream has ended in order")),
                    Err(status) => status,
                },
                Err(status) => status,
            };
            if Instant::now() > deadline {
                return Err(Failure::new(format!("no certificate: {told}")));
            }
            sleep(POLL).await;
        }
    }

    /// The status of a call for a JWT.
    ///
    /// # Errors
    /// When there is none.
    pub async fn jwt(&self) -> Result<Status, Failure> {
        let request = self.request(JwtsvidRequest::default());
        self.service.clone().fetch_jwtsvid(request).await.err().ok_or_else(|| Failure::new("it is answered"))
    }
}

impl<A: prost::Message + Default + 'static> Updates<A> {
    /// The next message, which must come in time.
    ///
    /// # Errors
    /// When the stream ends instead, or nothing comes.
    pub async fn next(&mut self) -> Result<A, Failure> {
        let message = timeout(PATIENCE, self.0.message()).await.or_fail("wait for a message")?;
        message.or_fail("read the stream")?.ok_or_else(|| Failure::new("the stream has ended"))
    }

    /// The status with which the stream ends now.
    ///
    /// # Errors
    /// When a message comes instead.
    pub async fn refusal(&mut self) -> Result<Status, Failure> {
        match timeout(PATIENCE, self.0.message()).await.or_fail("wait for a status")? {
            Err(status) => Ok(status),
            Ok(message) => Err(Failure::new(format!("no status; a message: {}", message.is_some()))),
        }
    }

    /// Nothing must come for so long, and the stream stays open.
    ///
    /// # Errors
    /// When something comes.
    pub async fn expect_silence(&mut self, period: Duration) -> crate::Result {
        match timeout(period, self.0.message()).await {
            Err(_) => Ok(()),
            Ok(Ok(Some(_))) => Err(Failure::new("a message came on a stream that should be silent")),
            Ok(ended) => Err(Failure::new(format!("the stream has ended: {:?}", ended.err()))),
        }
    }
}

impl Updates<X509svidResponse> {
    /// The certificate in the next message.
    ///
    /// # Errors
    /// As for [`Updates::next`], and when it holds none or several.
    pub async fn svid(&mut self) -> Result<Svid, Failure> {
        Svid::only(self.next().await?)
    }
}

/// The one certificate of a message.
pub struct Svid {
    /// The message but for that.
    pub message: X509svidResponse,
    /// As it came.
    pub wire: X509svid,
    /// Leaf first.
    pub chain: Vec<X509>,
    /// Its key.
    pub key: PKey<Private>,
    /// The anchors of its trust domain.
    pub anchors: Vec<X509>,
}

impl Svid {
    fn only(mut message: X509svidResponse) -> Result<Self, Failure> {
        let (wire, 0) =
            (message.svids.pop().ok_or_else(|| Failure::new("there is no certificate"))?, message.svids.len())
        else {
            return Err(Failure::new("there are several certificates"));
        };
        let (chain, anchors) = (certificates(&wire.x509_svid)?, certificates(&wire.bundle)?);
        let key = PKey::private_key_from_pkcs8(&wire.x509_svid_key).or_fail("read the key as PKCS#8")?;
        let leaf =
            chain.first().and_then(|leaf| leaf.public_key().ok()).ok_or_else(|| Failure::new("there is no leaf"))?;
        if !key.public_eq(&leaf) {
            return Err(Failure::new("the key is another one's"));
        }
        Ok(Self { message, wire, chain, key, anchors })
    }

    /// The leaf's serial number.
    pub fn serial(&self) -> String {
        let number = self.chain[0].serial_number().to_bn().and_then(|number| number.to_hex_str());
        number.map(|text| text.to_lowercase()).unwrap_or_default()
    }
}

/// Certificates in DER, one after the other.
///
/// # Errors
/// When there is something else.
pub fn certificates(mut der: &[u8]) -> Result<Vec<X509>, Failure> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let certificate = X509::from_der(der).or_fail("read a certificate")?;
        der = &der[certificate.to_der().or_fail("measure it")?.len()..];
        found.push(certificate);
    }
    Ok(found)
}

/// Where the application of a site has its socket.
pub fn socket(site: &Site) -> PathBuf {
    site.workload.path().join("application/agent.sock")
}

/// The value of `SDS_SHIM_WORKLOAD_API` for a socket.
pub fn at(socket: &Path) -> String {
    format!("unix:{}", socket.display())
}
