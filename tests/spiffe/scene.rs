//! A pod of a mesh whose identities an agent hands out. It has a token and a CA as well, which nobody asks.

use std::{path::PathBuf, time::Duration};

use testkit::{
    Failure, Result,
    agent::{self, Agent, Answer},
    development_ca::{Issued, Leaf},
    fixture::{Logged, Site},
    sds::{self, SdsStream, Secret},
    shim::ShimBuilder,
    workload_api::at,
};

/// The identity that the agent hands out.
pub(crate) const ID: &str = "spiffe://example.org/any/path";
pub(crate) const LIFE: Duration = Duration::from_secs(3600);

pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) agent: Agent,
    pub(crate) shim: Logged,
    pub(crate) stream: SdsStream,
}

/// Where the agent of a site has its socket.
pub(crate) fn socket(site: &Site) -> PathBuf {
    site.workload.path().join("agent.sock")
}

/// The shim of a site, with its agent.
pub(crate) fn shim(site: &Site) -> ShimBuilder {
    site.shim().env("SDS_SHIM_SOURCE", "spiffe").env("SPIFFE_ENDPOINT_SOCKET", at(&socket(site)))
}

/// A certificate of the site's CA.
pub(crate) fn issue(site: &Site, id: &str) -> Issued {
    site.pki.issue(&Leaf::workload(id, LIFE))
}

/// What the agent tells of it.
pub(crate) fn told(site: &Site, issued: &Issued, id: &str) -> Result<Answer> {
    Ok(Answer::Message(agent::message(agent::svid(issued, id, &site.pki.root_pem())?)))
}

impl Scene {
    /// The agent tells this from the start.
    pub(crate) async fn new(first: impl FnOnce(&Site) -> Result<Answer>) -> Result<Self, Failure> {
        Self::with(first, |shim| shim).await
    }

    pub(crate) async fn with(
        first: impl FnOnce(&Site) -> Result<Answer>,
        edit: impl FnOnce(ShimBuilder) -> ShimBuilder,
    ) -> Result<Self, Failure> {
        let site = Site::new().await?;
        let agent = Agent::start(&socket(&site), first(&site)?)?;
        let mut shim = Logged(edit(shim(&site)).start()?);
        let stream = shim.connect().await?.stream();
        stream.send(sds::request(&["default"]));
        Ok(Self { site, agent, shim, stream })
    }

    /// The next certificate that Envoy gets, acknowledged.
    pub(crate) async fn next(&mut self) -> Result<Secret, Failure> {
        let answer = self.stream.recv().await.map_err(|failure| self.shim.explain(failure))?;
        self.stream.send(sds::ack(&answer, &["default"]));
        Ok(sds::secrets(&answer)?.remove(0))
    }

    /// Hands out another certificate for the same identity, and returns it.
    pub(crate) fn renew(&self) -> Result<Issued> {
        let issued = issue(&self.site, ID);
        self.agent.tell(told(&self.site, &issued, ID)?);
        Ok(issued)
    }

    /// Envoy gets exactly this.
    pub(crate) async fn serves(&mut self, issued: &Issued) -> testkit::Result {
        let secret = self.next().await?;
        assert_eq!(secret.chain_pem, issued.chain_pem);
        assert!(secret.key()?.public_eq(&*secret.leaf()?.public_key().expect("its key")));
        Ok(())
    }

    /// A document of the admin endpoints.
    pub(crate) async fn page(&mut self, path: &str) -> Result<String, Failure> {
        Ok(self.shim.admin(path).await?.text())
    }
}
