//! Tokens as generic secrets: `file-token:` names below `SDS_SHIM_TOKEN_DIRECTORIES`.

use std::{
    net::Ipv4Addr,
    os::unix::fs::symlink,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sds_shim_proto::envoy::service::discovery::v3::DiscoveryResponse;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    development_ca::ProjectedVolume,
    envoy::{Bootstrap, Envoy, SdsTransport, sds_config},
    fixture::{Logged, Pod, QUIET, Site},
    http,
    httpbin::Httpbin,
    port, sds,
};
use tokio::net::TcpStream;
use tonic::Code;

/// How long a push may take.
const AT_ONCE: Duration = Duration::from_secs(1);
const HOUR: i64 = 3600;

/// A token that ends in so many seconds.
fn jwt(number: usize, life: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    let claims =
        json!({ "aud": ["payments", "billing"], "exp": now + life, "iat": now, "iss": "https://issuer", "n": number });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!(
        "{}.{}.{}",
        part(&json!({ "alg": "ES256" })),
        part(&claims),
        URL_SAFE_NO_PAD.encode(format!("signature-{number}"))
    )
}

/// A pod with a token where kubelet would put it.
struct Tokens {
    pod: Pod,
    volume: ProjectedVolume,
    name: String,
}

impl Tokens {
    async fn new(first: &str) -> Result<Self, Failure> {
        let site = Site::new().await?;
        let directory = site.workload.path().join("tokens");
        let volume = ProjectedVolume::create(&directory, &[]).or_fail("make the volume")?;
        volume.replace(&[("payments", first)]).or_fail("write the token")?;
        let name = format!("file-token:{}", volume.dir().join("payments").display());
        let shim = site.shim().env("SDS_SHIM_TOKEN_DIRECTORIES", volume.dir().display().to_string());
        let shim = shim.env("SDS_SHIM_NAMES", format!("payments={name}")).env("SDS_SHIM_LOG", "debug");
        Ok(Self { pod: site.serve_with(shim.env("SDS_SHIM_LANDLOCK", "strict")).await?, volume, name })
    }

    fn write(&self, token: &str) -> testkit::Result {
        self.volume.replace(&[("payments", token)]).or_fail("write the token")
    }
}

/// Whether these bytes are in the one resource of an answer.
fn holds(answer: &DiscoveryResponse, token: &str) -> bool {
    let [resource] = &answer.resources[..] else { return false };
    resource.value.windows(token.len()).any(|window| window == token.as_bytes())
}

#[tokio::test]
async fn a_token_follows_its_file_and_is_never_an_expired_one() -> testkit::Result {
    let first = jwt(1, HOUR);
    let mut tokens = Tokens::new(&format!("{first}\n")).await?;
    let (mut stream, answer) = tokens.pod.ask(&[&tokens.name]).await?;
    assert!(holds(&answer, &first) && !holds(&answer, &format!("{first}\n")));
    let (_, short) = tokens.pod.ask(&["payments"]).await?;
    assert!(holds(&short, &first), "under a name of one's own");
    let second = jwt(2, HOUR);
    tokens.write(&second)?;
    assert!(holds(&stream.recv_within(AT_ONCE).await?, &second));
    // Nothing that nobody would accept: what was good stays.
    let endless = {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part("{}"), part(r#"{"aud":"x"}"#), part("signature"))
    };
    for (bad, told) in [
        (jwt(3, -HOUR), "the token expired"),
        (endless, "the token never expires (no exp): it is not served"),
        ("no token".to_owned(), "the token is not a JWT"),
        (String::new(), "the token is empty"),
    ] {
        tokens.write(&bad)?;
        let line = tokens.pod.shim.wait_for_log(told).await?;
        assert!(line.contains("still serving its last good content") && line.contains("payments: "), "{line}");
    }
    stream.expect_silence(QUIET).await?;
    let status: Value =
        serde_json::from_str(&tokens.pod.shim.admin("/status").await?.text()).or_fail("read the status")?;
    let shown = status["workloads"][0]["resources"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["name"] == tokens.name));
    let shown = shown.ok_or_else(|| Failure::new(status.to_string()))?["certificates"][0].clone();
    assert_eq!(
        (&shown["kind"], &shown["audience"], &shown["issuer"]),
        (&"token".into(), &"payments, billing".into(), &"https://issuer".into())
    );
    let metrics = tokens.pod.shim.admin("/metrics").await?.text();
    let metric = metrics.lines().find(|line| line.contains("kind=\"token\"") && line.contains("file-token:"));
    assert!(metric.is_some_and(|line| line.contains("serial=\"payments, billing\"")), "{metrics}");
    let mut shown = Logged(tokens.pod.site.shim().arg("status").start()?);
    assert!(shown.wait_exit().await?.success());
    let lines = shown.log().lines();
    assert!(lines.iter().any(|line| line.contains("\"audience\": \"payments, billing\"")), "{lines:#?}");
    let mut got = Logged(tokens.pod.site.shim().arg("get").arg(&tokens.name).start()?);
    assert!(!got.wait_exit().await?.success());
    assert!(got.log().contains("it has no public part"));
    let third = jwt(4, 2);
    tokens.write(&third)?;
    assert!(holds(&stream.recv_within(AT_ONCE).await?, &third));
    // Once it has ended, nobody is served it who does not have it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut late = tokens.pod.client.stream();
    late.send(sds::request(&[&tokens.name]));
    late.expect_silence(QUIET).await?;
    for token in [first, second, third] {
        for text in
            [&metrics, &status.to_string(), &tokens.pod.shim.log().lines().join("\n"), &got.log().lines().join("\n")]
        {
            assert!(token.split('.').skip(1).all(|part| !text.contains(part)), "a token is in {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn files_elsewhere_are_not_served_as_tokens() -> testkit::Result {
    let tokens = Tokens::new(&jwt(1, HOUR)).await?;
    let elsewhere = tokens.pod.site.workload.path().join("elsewhere");
    std::fs::write(&elsewhere, jwt(2, HOUR)).or_fail("write another")?;
    let up = tokens.volume.dir().join("../elsewhere");
    for path in [elsewhere.clone(), up, tokens.pod.site.workload.token_file()] {
        let name = format!("file-token:{}", path.display());
        let mut delta = tokens.pod.client.delta();
        delta.send(sds::delta_request(&[&name], &[]));
        assert_eq!(delta.recv().await?.removed_resources, std::slice::from_ref(&name));
        let fetched = tokens.pod.client.fetch(sds::request(&[&name])).await;
        assert_eq!(fetched.err().map(|status| status.code()), Some(Code::NotFound));
    }
    symlink(&elsewhere, tokens.volume.dir().join("out")).or_fail("make a link")?;
    let mut stream = tokens.pod.client.stream();
    stream.send(sds::request(&[&format!("file-token:{}", tokens.volume.dir().join("out").display())]));
    let line = tokens.pod.shim.wait_for_log("a symbolic link leads out of").await?;
    assert!(line.contains("SDS_SHIM_TOKEN_DIRECTORIES"), "{line}");
    stream.expect_silence(QUIET).await?;
    let site = Site::new().await?;
    let shim = site.shim().env("SDS_SHIM_NAMES", "x=file-token:/run/x");
    let mut shim = Logged(shim.arg("check").start()?);
    assert!(!shim.wait_exit().await?.success());
    assert!(
        shim.log()
            .contains("SDS_SHIM_NAMES: a token's path must be absolute and below one of SDS_SHIM_TOKEN_DIRECTORIES")
    );
    Ok(())
}

/// A listener that adds the token to each request.
fn injecting(port: u16, name: &str) -> Value {
    let types = "type.googleapis.com/envoy.extensions.filters";
    let credential = json!({
        "@type": "type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic",
        "credential": { "name": name, "sds_config": sds_config(&SdsTransport::EnvoyDeltaGrpc) },
        "header_value_prefix": "Bearer ",
    });
    let injector = json!({
        "@type": format!("{types}.http.credential_injector.v3.CredentialInjector"),
        "overwrite": true,
        "credential": { "name": "envoy.http.injected_credentials.generic", "typed_config": credential },
    });
    let router = json!({ "@type": format!("{types}.http.router.v3.Router") });
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "application" } }]);
    let manager = json!({
        "@type": format!("{types}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "out",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [
            { "name": "envoy.filters.http.credential_injector", "typed_config": injector },
            { "name": "envoy.filters.http.router", "typed_config": router },
        ],
    });
    json!({
        "name": "out",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": manager }] }],
    })
}

#[tokio::test]
async fn envoys_credential_injector_sends_the_new_one_after_each_of_ten_rotations() -> testkit::Result {
    let first = jwt(0, HOUR);
    let tokens = Tokens::new(&first).await?;
    let (httpbin, port) = (Httpbin::start().await?, port::unshared().or_fail("find a port")?);
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": httpbin.address().port() } });
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": address } }] }]);
    let cluster = json!({
        "name": "application",
        "type": "STATIC",
        "load_assignment": { "cluster_name": "application", "endpoints": endpoints },
    });
    let bootstrap =
        Bootstrap::new("sleep", SdsTransport::EnvoyDeltaGrpc).cluster(cluster).listener(injecting(port, "payments"));
    let mut envoy = Envoy::start("Envoy", tokens.pod.site.workload.path(), &bootstrap.build())?;
    envoy.wait_ready().await?;
    let sent = || async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.or_fail("connect to Envoy")?;
        let answer: Value =
            serde_json::from_slice(&http::get(stream, "httpbin", "/headers").await?.body).or_fail("read the answer")?;
        Ok::<_, Failure>(answer["headers"]["authorization"].as_str().unwrap_or_default().to_owned())
    };
    for number in 0..=10 {
        let token = if number > 0 { jwt(number, HOUR) } else { first.clone() };
        tokens.write(&token)?;
        let expected = format!("Bearer {token}");
        envoy.wait_until("the next token", || async { Ok(sent().await? == expected) }).await?;
    }
    assert_eq!(envoy.admin().server_info().await?["state"], "LIVE");
    assert_eq!(tokens.pod.shim.log().count("rejected the secret"), 0);
    Ok(())
}
