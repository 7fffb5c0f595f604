use openssl::{
    nid::Nid,
    pkey::{PKey, Private},
};
use testkit::{Failure, OrFail, development_ca::CaOptions, fixture::secret, sds::Secret};
use tokio::time::timeout;

use crate::subject::{Implementation, QUIET, Setup};

async fn served(of: Implementation, env: &[(&'static str, &str)]) -> Result<Secret, Failure> {
    let mut setup = Setup::new(of).await?;
    for (name, value) in env {
        setup = setup.env(name, *value);
    }
    secret(&setup.start().await?.ask(&["default"]).await?.1, "default")
}

fn curve(key: &PKey<Private>) -> Result<Option<Nid>, Failure> {
    Ok(key.ec_key().or_fail("take the key as ECDSA's")?.group().curve_name())
}

pub(super) async fn ecdsa(of: Implementation) -> testkit::Result {
    let secret = served(of, &[("ECC_SIGNATURE_ALGORITHM", "ECDSA")]).await?;
    assert_eq!(curve(&secret.key()?)?, Some(Nid::X9_62_PRIME256V1));
    Ok(())
}

pub(super) async fn p384(of: Implementation) -> testkit::Result {
    let secret = served(of, &[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")]).await?;
    assert_eq!(curve(&secret.key()?)?, Some(Nid::SECP384R1));
    Ok(())
}

pub(super) async fn rsa(of: Implementation) -> testkit::Result {
    let secret = served(of, &[("WORKLOAD_RSA_KEY_SIZE", "3072")]).await?;
    assert_eq!(secret.key()?.rsa().or_fail("take the key as RSA's")?.size(), 384);
    Ok(())
}

pub(super) async fn pkcs8(of: Implementation) -> testkit::Result {
    let secret = served(of, &[("PKCS8_KEY", "true")]).await?;
    assert!(secret.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"), "another form");
    Ok(())
}

pub(super) async fn bad_duration(of: Implementation) -> testkit::Result {
    let mut server = Setup::new(of).await?.env("SECRET_TTL", "1 day").launch()?;
    let status = timeout(QUIET * 10, server.process().wait_exit()).await.or_fail("wait for its end")??;
    assert!(!status.success(), "{status}");
    Ok(())
}

pub(super) async fn trust_domain(of: Implementation) -> testkit::Result {
    let options = CaOptions { trust_domain: "example.org".to_owned(), ..CaOptions::default() };
    let setup = Setup::with_options(of, options).await?.env("TRUST_DOMAIN", "example.org");
    let secret = secret(&setup.start().await?.ask(&["default"]).await?.1, "default")?;
    assert_eq!(secret.spiffe_ids()?, ["spiffe://example.org/ns/foo/sa/sleep"]);
    Ok(())
}
