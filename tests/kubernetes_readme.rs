//! README's section on Kubernetes, command by command, against a real API server, with the pods in containers:
//! `make test-kubernetes`.

mod kubernetes_stage;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use kubernetes_stage::CA;
use testkit::{
    Failure, OrFail,
    container::{Images, ProgramImage},
    fixture::write_program,
    kubelet::{Node, RunningPod},
    kubernetes::Cluster,
    scratch::Scratch,
    workspace,
};

/// The release's namespace.
const RELEASE: &str = "sds-shim";

/// What stands in place of kubectl for `exec`, which the API server hands to the node's kubelet: podman does it.
const KUBECTL: &str = r#"#!/bin/bash
if [ "$3" = exec ] && [ "$1 $5 $7" = "-n -c --" ]; then
    container=$(cat "DIRECTORY/$2.${4#deployment/}.$6") || exit
    exec podman --runtime runc exec "$container" "${@:8}"
fi
exec KUBECTL "$@"
"#;

/// The commands of the section: each block that is marked as a shell's.
fn blocks() -> Result<[String; 5], Failure> {
    let readme = fs::read_to_string(workspace().join("README.md")).or_fail("read README.md")?;
    let section = readme.split("\n## ").find(|section| section.starts_with("Deploy on Kubernetes\n"));
    let section = section.ok_or_else(|| Failure::new("README.md has no section on Kubernetes"))?;
    let blocks = section.split("\n```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let blocks: Vec<_> = blocks.map(str::to_owned).collect();
    let wrong = |blocks: Vec<_>| Failure::new(format!("README.md has {} blocks of commands, not five", blocks.len()));
    blocks.try_into().map_err(wrong)
}

/// Without a cluster as well: they are where they are looked for.
#[test]
fn the_readme_has_its_commands() -> Result<(), Failure> {
    let [install, .., clean] = blocks()?;
    assert!(install.contains("helm install") && clean.contains("helm uninstall"), "{install}\n{clean}");
    Ok(())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_commands_in_the_readme_do_what_it_says() -> Result<(), Failure> {
    let [install, policy, samples, calls, clean] = blocks()?;
    let cluster = Cluster::start().await?;
    let before = cluster.everything().await?;
    for block in [&install, &policy, &samples] {
        println!("{}", cluster.script(block).await?.success()?);
    }
    let scratch = Scratch::new("pods")?;
    let pictures = Pictures::build(scratch.path())?;
    let node = pictures.node(&cluster, scratch.path()).await?;
    let pods = run_all(&cluster, &node).await?;

    let tools = tools(&cluster, scratch.path(), &pods)?;
    // The call in plaintext is refused, as the README says: the script goes on.
    let told = cluster.script(&format!("PATH={}:$PATH; set +e\n{calls}", tools.display())).await?;
    println!("{}{}", told.output, told.errors);
    for expected in expected() {
        assert!(told.output.contains(&expected), "{expected:?} is not in {}{}", told.output, told.errors);
    }
    assert_eq!(told.output.matches("origin").count(), 0, "plaintext was answered");

    println!("{}", cluster.script(&clean).await?.success()?);
    assert_eq!(cluster.everything().await?, before);
    for (_, pod) in pods {
        pod.delete(&node).await?;
    }
    drop(node);
    cluster.stop().await
}

/// What the calls write among other things.
fn expected() -> Vec<String> {
    let pairs = [("foo", "foo"), ("foo", "bar"), ("bar", "foo"), ("bar", "bar")];
    let mut lines: Vec<_> = pairs.map(|(from, to)| format!("sleep.{from} to httpbin.{to}: 200\n")).into();
    lines.push("By=spiffe://cluster.local/ns/bar/sa/httpbin".to_owned());
    lines.push("URI=spiffe://cluster.local/ns/foo/sa/sleep".to_owned());
    lines.push("\"identity\": \"spiffe://cluster.local/ns/foo/sa/sleep\"".to_owned());
    lines
}

/// Images under the names that chart and samples give them.
struct Pictures {
    shim: Images,
    ca: ProgramImage,
    envoy: ProgramImage,
    server: ProgramImage,
    client: ProgramImage,
}

impl Pictures {
    fn build(scratch: &Path) -> Result<Self, Failure> {
        Ok(Self {
            shim: Images::build(None, 1_200_000_000 + std::process::id())?,
            ca: ProgramImage::development_ca(scratch)?,
            envoy: ProgramImage::envoy(scratch)?,
            server: ProgramImage::applications(scratch)?,
            client: ProgramImage::client(scratch)?,
        })
    }

    /// A node of the cluster, on which pods find the API server.
    async fn node(&self, cluster: &Cluster, directory: &Path) -> Result<Node, Failure> {
        let mut node = Node::start(directory, self.server.name(), Arc::new(cluster.for_node()?)).await?;
        let version = env!("CARGO_PKG_VERSION");
        node.image(format!("localhost/sds-shim:{version}"), self.shim.binary());
        node.image(format!("localhost/sds-shim-development-ca:{version}"), self.ca.name());
        node.image("docker.io/envoyproxy/envoy:distroless-v1.40.0", self.envoy.name());
        node.image("docker.io/mccutchen/go-httpbin:v2.15.0", self.server.name());
        node.image("docker.io/curlimages/curl:8.11.1", self.client.name());
        node.serve("kubernetes", "default");
        node.forward(443, cluster.address()).await?;
        Ok(node)
    }
}

/// Does kubelet's work, for who is needed first at first. The pods come with `NAMESPACE.DEPLOYMENT`.
async fn run_all(cluster: &Cluster, node: &Node) -> Result<Vec<(String, RunningPod)>, Failure> {
    let component = "app.kubernetes.io/component=development-ca";
    let wanted = [
        (RELEASE, CA, component, true),
        ("foo", "httpbin", "app=httpbin", true),
        ("bar", "httpbin", "app=httpbin", true),
        ("foo", "sleep", "app=sleep", false),
        ("bar", "sleep", "app=sleep", false),
    ];
    let mut pods: Vec<(String, RunningPod)> = Vec::new();
    for (namespace, name, label, serves) in wanted {
        if serves {
            node.service(&cluster.get(&["service", name, "-n", namespace]).await?)?;
        }
        let pod = cluster.pod(namespace, label).await?;
        let running = node.run(&pod).await;
        let explain = |failure| pods.iter().fold(failure, |failure, (_, pod)| pod.explain(failure));
        pods.push((format!("{namespace}.{name}"), running.map_err(explain)?));
        cluster.is_ready(&pod).await?;
    }
    Ok(pods)
}

/// A directory with a kubectl that can `exec`.
fn tools(cluster: &Cluster, scratch: &Path, pods: &[(String, RunningPod)]) -> Result<PathBuf, Failure> {
    let directory = scratch.join("tools");
    fs::create_dir_all(&directory).or_fail("make a directory for kubectl")?;
    for (name, pod) in pods {
        for container in pod.containers() {
            let file = directory.join(format!("{name}.{container}"));
            fs::write(file, pod.container(container)?.name()).or_fail("name a container")?;
        }
    }
    let real = cluster.program("kubectl")?;
    let script = KUBECTL.replace("DIRECTORY", &directory.display().to_string());
    let file = directory.join("kubectl");
    write_program(&file, &script.replace("KUBECTL", &real.display().to_string()))?;
    Ok(directory)
}
