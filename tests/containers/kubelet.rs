//! That the test kit's kubelet does what a pod asks for, by a pod that asks for all that it understands. Where the
//! machine does not let us start containers nothing can be tested, which is said past the test harness.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use testkit::{
    Failure, OrFail,
    container::{ProgramImage, possible},
    kubelet::{Cluster, Exit, Node, RunningPod, TokenWish},
    scratch::Scratch,
};

/// An API server that knows one ConfigMap and one Secret, and tells in each token what it was asked.
#[derive(Default)]
struct Answers(AtomicUsize);

impl Cluster for Answers {
    fn token(&self, wish: &TokenWish<'_>) -> Result<String, Failure> {
        let TokenWish { namespace, service_account, pod, uid, audience, expiration_seconds } = wish;
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(format!("{number} {namespace} {service_account} {pod} {uid} {audience:?} {expiration_seconds}"))
    }

    fn config_map(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let known = (namespace, name) == ("foo", "words");
        Ok(known.then(|| BTreeMap::from([("greeting".to_owned(), "hello".to_owned())])))
    }

    fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Failure> {
        let known = (namespace, name) == ("foo", "whispers");
        Ok(known.then(|| BTreeMap::from([("key".to_owned(), "hush".to_owned())])))
    }
}

struct Site {
    node: Node,
    _image: ProgramImage,
    _scratch: Scratch,
}

impl Site {
    async fn new() -> Result<Option<Self>, Failure> {
        if !possible() {
            return Ok(None);
        }
        let scratch = Scratch::new("pods")?;
        let image = ProgramImage::applications(scratch.path())?;
        let mut node = Node::start(scratch.path(), image.name(), Arc::new(Answers::default())).await?;
        node.image("app", image.name());
        Ok(Some(Self { node, _image: image, _scratch: scratch }))
    }
}

/// With an init container, a sidecar, and an application.
fn manifest() -> Value {
    let kept = json!([{ "name": "kept", "mountPath": "/kept" }]);
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let copy = |to: &str| json!({ "exec": { "command": ["/bin/cp", "/etc/hosts", format!("/kept/{to}")] } });
    let get = json!({ "httpGet": { "path": "/ip", "port": 8080 }, "periodSeconds": 1, "failureThreshold": 10 });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "all", "namespace": "foo", "uid": "u-1", "labels": { "app": "all", "tier": "test" } },
        "spec": {
            "serviceAccountName": "worker",
            "shareProcessNamespace": true,
            "terminationGracePeriodSeconds": 1,
            "securityContext": { "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true, "fsGroup": 2000 },
            "volumes": [
                { "name": "kept", "emptyDir": {} },
                { "name": "small", "emptyDir": { "medium": "Memory", "sizeLimit": "64Ki" } },
                { "name": "told", "projected": { "sources": [
                    { "serviceAccountToken": { "path": "token", "audience": "a-ca", "expirationSeconds": 7200 } },
                    { "configMap": { "name": "words", "items": [{ "key": "greeting", "path": "first" }] } },
                    { "downwardAPI": { "items": [
                        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                    ] } },
                ] } },
                { "name": "hidden", "secret": { "secretName": "whispers", "defaultMode": 0o400 } },
            ],
            "initContainers": [
                { "name": "environment", "image": "app", "command": ["/bin/env"], "env": [
                    field("NAME", "metadata.name"),
                    field("ACCOUNT", "spec.serviceAccountName"),
                    field("TIER", "metadata.labels['tier']"),
                    field("ADDRESS", "status.podIP"),
                    { "name": "BOTH", "value": "$(ACCOUNT) of $(NAME), $$(NAME) $(NOBODY)" },
                    { "name": "WORD", "valueFrom": { "configMapKeyRef": { "name": "words", "key": "greeting" } } },
                ] },
                { "name": "server", "image": "app", "restartPolicy": "Always", "command": ["/bin/go-httpbin"],
                  "env": [{ "name": "PORT", "value": "8080" }], "args": ["-host", "0.0.0.0", "-port", "$(PORT)"],
                  "ports": [{ "name": "calls", "containerPort": 8080 }],
                  "startupProbe": get, "readinessProbe": { "tcpSocket": { "port": "calls" } },
                  "livenessProbe": { "exec": { "command": ["/usr/bin/curl", "--include", "http://127.0.0.1:8080/ip"] } },
                  "resources": { "limits": { "memory": "64Mi", "cpu": "500m" }, "requests": { "cpu": "100m" } } },
            ],
            "containers": [
                { "name": "client", "image": "app", "command": ["/bin/sleep"], "args": ["infinity"],
                  "lifecycle": { "postStart": copy("started"), "preStop": copy("ending") }, "volumeMounts": kept },
            ],
        },
    })
}

#[tokio::test]
async fn a_pod_gets_what_it_asks_for() -> testkit::Result {
    let Some(site) = Site::new().await? else { return Ok(()) };
    site.node.service(&json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "all-here", "namespace": "foo" },
        "spec": { "selector": { "app": "all" }, "ports": [{ "name": "http", "port": 80, "targetPort": "calls" }] },
    }))?;
    let pod = site.node.run(&manifest()).await?;
    variables(&pod)?;
    volumes(&pod)?;
    let namespace = |container: &str| {
        let path = format!("/proc/{}/ns/pid", pod.pid(container)?);
        fs::read_link(&path).or_fail(format!("read {path}"))
    };
    assert_eq!(namespace("server")?, namespace("client")?);
    pod.live("server").await?;
    assert!(pod.live("client").await.is_err(), "it has no liveness probe");
    // By the service's name and address, which lead to the pod.
    let call = pod.exec("client", &["/usr/bin/curl", "--include", "http://all-here/ip"]).await?;
    assert_eq!(call.lines.first().map(String::as_str), Some("HTTP/1.1 200 OK"), "{call:?}");
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}{{.HostConfig.CpuQuota}}";
    let limits =
        testkit::container::podman(&["container", "inspect", "--format", format, pod.container("server")?.name()])?;
    assert!(limits.starts_with(&format!("{} ", 64 << 20)) && limits.contains('5'), "{limits}");

    let kept = pod.volume("kept")?;
    assert!(kept.join("started").is_file() && !kept.join("ending").exists());
    let exits = pod.delete(&site.node).await?;
    let exit = |container: &str, code| Exit { container: container.to_owned(), code: Some(code) };
    // SIGTERM ends it, which it would not as the first process of a namespace of its own.
    assert_eq!(exits, [exit("client", 143), exit("server", 0)]);
    assert!(kept.join("ending").is_file());
    Ok(())
}

fn variables(pod: &RunningPod) -> testkit::Result {
    let log = pod.process("environment")?.log();
    for expected in [
        "NAME=all".to_owned(),
        "ACCOUNT=worker".to_owned(),
        "TIER=test".to_owned(),
        format!("ADDRESS={}", pod.address()),
        "BOTH=worker of all, $(NAME) $(NOBODY)".to_owned(),
        "WORD=hello".to_owned(),
        "ALL_HERE_SERVICE_PORT_HTTP=80".to_owned(),
        "ALL_HERE_PORT_80_TCP_PROTO=tcp".to_owned(),
    ] {
        assert!(log.lines().contains(&expected), "{expected} is not in {:?}", log.lines());
    }
    Ok(())
}

fn volumes(pod: &RunningPod) -> testkit::Result {
    let told = pod.volume("told")?;
    let read = |name: &str| fs::read_to_string(told.join(name)).or_fail(format!("read {name}"));
    assert_eq!(read("token")?, "0 foo worker all u-1 Some(\"a-ca\") 7200");
    assert_eq!((read("first")?.as_str(), read("labels")?.as_str()), ("hello", "app=\"all\"\ntier=\"test\""));
    let hidden = pod.volume("hidden")?.join("key");
    assert_eq!(fs::read_to_string(&hidden).or_fail("read the Secret")?, "hush");
    let mode = fs::metadata(&hidden).or_fail("look at the Secret")?.mode();
    assert_eq!(mode & 0o7777, 0o440, "its group is fsGroup");
    let access = |name: &str| {
        let metadata = fs::metadata(told.join(name)).or_fail(format!("look at {name}"))?;
        Ok((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
    };
    assert_eq!(access("token")?, (0o640, 1000, 2000));
    assert_eq!(access("first")?, (0o644, 0, 2000));
    pod.refresh()?;
    assert!(read("token")?.starts_with("1 foo"));
    let small = pod.volume("small")?;
    let full = fs::write(small.join("much"), vec![0; 65 << 10]).expect_err("it has 64 KiB");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    Ok(())
}

#[tokio::test]
async fn start_failures_are_reported_and_cleaned_up() -> testkit::Result {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let cases = [
        (
            "/spec/initContainers/0/command",
            json!(["/bin/cp", "/none", "/none"]),
            "environment ended with exit status: 1",
        ),
        ("/spec/initContainers/1/args", json!(["-nothing"]), "server does not start: it ended with exit status: 1"),
        ("/spec/initContainers/1/startupProbe/failureThreshold", json!(0), "server does not start: not within"),
        ("/spec/containers/0/lifecycle/postStart/exec/command", json!(["/bin/cp"]), "the hook after the start"),
        ("/spec/containers/0/command", json!(["/bin/nothing"]), "client does not run"),
        ("/spec/volumes/1/name", json!("kept"), "is there twice"),
        ("/spec/volumes/2/projected/sources/1/configMap/name", json!("none"), "there is no ConfigMap none"),
        ("/spec/volumes/3/secret/secretName", json!("none"), "there is no Secret none"),
        ("/spec/initContainers/1/readinessProbe/tcpSocket/port", json!("none"), "no port is called none"),
    ];
    for (place, value, told) in cases {
        let mut pod = manifest();
        *pod.pointer_mut(place).expect("it is in the manifest") = value;
        if told.ends_with("not within") {
            pod["spec"]["initContainers"][1]["startupProbe"]["httpGet"]["port"] = 8081.into();
        }
        match site.node.run(&pod).await {
            Ok(pod) => panic!("{} runs in spite of {place}", pod.name()),
            Err(failure) => assert!(failure.what().contains(told), "{place}: {failure}"),
        }
        assert_eq!(site.node.containers()?.len(), 0, "{place}");
    }
    Ok(())
}
