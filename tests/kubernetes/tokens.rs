//! The mesh with tokens of a real Kubernetes API server, by the chart and its samples: `make test-kubernetes`.

use std::path::Path;

use crate::stage::{CA, CA_TOKEN, CHART, Stage, VOLUME, authority, simple_pod};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testkit::{
    Failure, OrFail, Workload,
    citadel::{Asked, create_certificate, csr},
    development_ca::{Method, Outcome},
    process::Process,
    scene::{Mesh, Sidecar, TokenSource, World},
    shim::Shim,
    workspace,
};
use tonic::Code;

/// Has the shim ask for a certificate now, and returns the token that came with it and what became of it.
async fn renew(world: &World, sidecar: &Sidecar) -> Result<(Option<String>, Outcome), Failure> {
    let before = world.ca.calls().len();
    let workload = &sidecar.workload;
    let subject = format!("system:serviceaccount:{}:{}", workload.namespace(), workload.service_account());
    sidecar.shim.signal(Signal::SIGUSR1)?;
    // Others, who were refused before, call as well.
    for more in 1.. {
        world.ca.wait_for_outcomes(before + more).await;
        let own = world.ca.calls().into_iter().skip(before).find_map(|call| {
            let sent = call.authorization.filter(|sent| sent.subject.as_deref() == Some(&subject))?;
            (call.outcome != Outcome::Pending).then_some((sent.id, call.outcome))
        });
        if let Some(own) = own {
            return Ok(own);
        }
    }
    Err(Failure::new("no call"))
}

/// Why the CA refuses a token that comes alone.
async fn reason(world: &World, token: &str) -> Result<String, Failure> {
    let csr = csr(&["spiffe://cluster.local/ns/foo/sa/sleep"])?;
    let asked = Asked { csr: &csr, validity: 3600, token: Some(token), certificate: None };
    let answer = create_certificate(world.ca.address(), &world.ca.root_pem(), &asked).await?;
    assert_eq!(answer.map_err(|status| status.code()), Err(Code::Unauthenticated));
    let calls = world.ca.calls().into_iter().rev();
    let refused = calls.filter(|call| call.csr == csr).find_map(|call| match call.outcome {
        Outcome::Refused { reason, .. } => Some(reason),
        _ => None,
    });
    refused.ok_or_else(|| Failure::new("the CA has not recorded why"))
}

/// What a token says; nothing is verified.
pub(crate) fn claims(token: &str) -> Result<Value, Failure> {
    let claims = token.split('.').nth(1).unwrap_or_default().replace('-', "+").replace('_', "/");
    let padded = format!("{claims}{}", "=".repeat(claims.len().next_multiple_of(4) - claims.len()));
    let claims = openssl::base64::decode_block(&padded).or_fail("decode a token")?;
    serde_json::from_slice(&claims).or_fail("read a token")
}

/// The `jti` of a token.
fn id(token: &str) -> Result<String, Failure> {
    Ok(claims(token)?["jti"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_mesh_has_its_identities_from_tokens_of_the_cluster() -> testkit::Result {
    let stage = Stage::set().await?;
    let cluster = &stage.cluster;
    // The pods of the samples were let in for what they are: others are not.
    let mut careless = simple_pod("sleep");
    careless["metadata"]["namespace"] = "foo".into();
    careless["spec"]["securityContext"] = json!({});
    let told = cluster.create(&careless).await.expect_err("a pod that is not restricted");
    assert!(told.what().contains("violates PodSecurity \"restricted:latest\""), "{told}");
    let world = stage.world(Method::TokenReview).await?;
    let mut mesh = Mesh::start(&world, &stage.scratch.path().join("mesh"), TokenSource::File, |shim| shim)
        .await
        .map_err(|failure| cluster.explain(world.explain(failure)))?;
    let mut lines = Vec::new();
    mesh.call_all(|line| lines.push(line)).await?;
    println!("{}", lines.join("\n"));
    assert_eq!(lines.len(), 4);
    assert!(lines.contains(&"sleep.foo to httpbin.bar: 200".to_owned()));

    // Kubelet puts a new token in the place of the old one long before that ends.
    let sleep = &mut mesh.clients[0];
    let (first, _) = renew(&world, sleep).await?;
    let token = cluster.token(&stage.pods["sleep.foo"], VOLUME).await?;
    sleep.workload.write_token(&token).or_fail("write the token")?;
    let (second, outcome) = renew(&world, sleep).await?;
    assert_eq!(second, Some(id(&token)?));
    assert_ne!(first, second);
    assert!(matches!(outcome, Outcome::Issued { .. }), "{outcome:?}");
    let Outcome::Issued { serial, .. } = outcome else { unreachable!() };
    sleep.wait_for_serial(serial.to_ascii_lowercase().trim_start_matches('0')).await?;

    // A token dies with its pod, and the token of another pod of the account with the account.
    let name = stage.pods["sleep.foo"]["metadata"]["name"].as_str().unwrap_or_default();
    cluster.kubectl(&["delete", "deployment", "sleep", "-n", "foo"]).await?;
    cluster.kubectl(&["wait", "--for=delete", "-n", "foo", &format!("pod/{name}")]).await?;
    refused(&stage, &world, &mesh.clients[0], &token).await?;
    cluster.kubectl(&["delete", "serviceaccount", "sleep", "-n", "bar"]).await?;
    refused(&stage, &world, &mesh.clients[1], &world.given["sleep.bar"]).await?;

    // Others are not believed, and neither is the CA unless it may ask.
    let spec = json!({ "audiences": ["somebody-else"], "expirationSeconds": 3600 });
    let other = cluster.request_token("foo", "sleep", &spec).await?;
    let told = reason(&world, &other).await?;
    assert!(told.contains("TokenReview: ") && told.contains("audience"), "{told}");
    cluster.kubectl(&["delete", "clusterrolebinding", &format!("{CA}-tokenreview")]).await?;
    let told = reason(&world, &cluster.token(&stage.pods["httpbin.foo"], VOLUME).await?).await?;
    assert!(told.contains("tokenreviews.authentication.k8s.io is forbidden"), "{told}");

    // What they hold they go on serving.
    for client in &mut mesh.clients {
        client.envoy.terminate().await?;
        client.restart_envoy()?;
        client.envoy.wait_ready().await?;
    }
    mesh.call_all(|line| println!("without a token that is good: {line}")).await?;
    mesh.stop().await?;
    stage.cluster.stop().await
}

/// The shim's token is refused, and it says so.
async fn refused(stage: &Stage, world: &World, sidecar: &Sidecar, token: &str) -> testkit::Result {
    stage.cluster.forgets(token, "istio-ca").await?;
    let mark = sidecar.shim.log().mark();
    let (sent, outcome) = renew(world, sidecar).await?;
    assert_eq!(sent, Some(id(token)?));
    let Outcome::Refused { code: Code::Unauthenticated, reason } = outcome else {
        return Err(Failure::new(format!("the token of something deleted: {outcome:?}")));
    };
    let line = sidecar.shim.wait_for_log_after(mark, "UNAUTHENTICATED").await?;
    assert!(line.contains("that the pod and its service account still exist"), "{line}");
    println!("{}: {reason}; its shim says: {line}", sidecar.name());
    Ok(())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_keys_that_the_cluster_publishes_suffice() -> testkit::Result {
    let mut stage = Stage::set().await?;
    let upgrade = ["upgrade", "sds-shim", CHART, "-n", "sds-shim", "--reset-then-reuse-values"];
    stage.cluster.helm(&[&upgrade[..], &["--set", "developmentCA.verify=jwks"]].concat()).await?;
    let world = stage.world(Method::Jwks).await?;
    let mesh = Mesh::start(&world, &stage.scratch.path().join("mesh"), TokenSource::File, |shim| shim)
        .await
        .map_err(|failure| world.explain(failure))?;
    mesh.call_all(|line| println!("by the cluster's keys: {line}")).await?;

    let cluster = &stage.cluster;
    let spec = json!({ "audiences": ["somebody-else"], "expirationSeconds": 3600 });
    let other = cluster.request_token("foo", "sleep", &spec).await?;
    assert_eq!(reason(&world, &other).await?, "wrong audience");

    // Nobody looks whether the account is still there: that is the price of asking nobody.
    cluster.kubectl(&["delete", "serviceaccount", "sleep", "-n", "bar"]).await?;
    cluster.forgets(&world.given["sleep.bar"], "istio-ca").await?;
    let (_, outcome) = renew(&world, &mesh.clients[1]).await?;
    assert!(matches!(outcome, Outcome::Issued { .. }), "{outcome:?}");
    mesh.stop().await?;
    deployed(&mut stage).await?;
    stage.cluster.stop().await
}

/// The CA's program with the arguments that its Deployment gives it: what the chart says, it understands, and signs.
async fn deployed(stage: &mut Stage) -> testkit::Result {
    let deployment = stage.cluster.get(&["deployment", CA, "-n", "sds-shim"]).await?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // Its volume, its address and the API server are elsewhere here.
    let moved = ["--dir=", "--listen="];
    let mut arguments: Vec<_> =
        arguments.filter(|argument| !moved.iter().any(|flag| argument.starts_with(flag))).map(str::to_owned).collect();
    let token_file = stage.scratch.path().join(CA_TOKEN);
    arguments.extend([
        format!("--dir={}", authority(&stage.cluster, stage.scratch.path()).await?.display()),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--api-server={}", stage.cluster.url()),
        format!("--api-server-ca={}", stage.cluster.root_file().display()),
        format!("--api-server-token={}", token_file.display()),
    ]);
    let program = workspace().join("target/debug/development-ca");
    let ca = Process::start("the chart's CA", &program, &arguments, &[], Path::new("/"))?;
    let line = ca.wait_for_log("listening on").await?;
    let address = line.split(' ').next_back().and_then(|address| address.parse().ok());
    let address = address.ok_or_else(|| ca.failure("the chart's CA tells no address"))?;

    let map = stage.cluster.get(&["configmap", "sds-shim", "-n", "foo"]).await?;
    let root = map["data"]["root-cert.pem"].as_str().unwrap_or_default();
    let workload = Workload::create(&stage.scratch.path().join("pod"), "foo", "sleep", root);
    let mut workload = workload.or_fail("lay out the pod")?;
    let token = stage.cluster.token(&stage.pods["sleep.foo"], VOLUME).await?;
    workload.write_token(&token).or_fail("write the token")?;
    let mut shim = Shim::for_workload(&workload, address).start()?;
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(testkit::sds::request(&["default"]));
    let answer = stream.recv().await.map_err(|failure| ca.explain(shim.explain(failure)))?;
    let secrets = testkit::sds::secrets(&answer)?;
    assert_eq!(secrets.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["default"]);
    shim.terminate().await.map(drop)
}
