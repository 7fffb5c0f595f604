//! README's section on Kubernetes, command by command.

use std::fs;

use testkit::{
    Failure, OrFail,
    node::{Node, possible},
    workspace,
};

/// Waits until each sleep reaches each httpbin; `script` bounds it.
const ANSWERED: &str = r#"
for from in foo bar; do for to in foo bar; do
  until kubectl -n $from exec deployment/sleep -c sleep -- curl -sf -o /dev/null http://httpbin.$to:8000/ip; do sleep 0.5; done
done; done"#;

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
fn the_readme_has_its_commands() -> testkit::Result {
    let [install, .., clean] = blocks()?;
    assert!(install.contains("helm install") && clean.contains("helm uninstall"), "{install}\n{clean}");
    Ok(())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes node` builds"]
async fn the_readmes_commands_work_as_documented() -> testkit::Result {
    if !possible() {
        return Ok(());
    }
    let [install, policy, samples, calls, clean] = blocks()?;
    let (cluster, node) = Node::start().await?;
    println!("the node was ready after {:.1?}", node.started());
    let before = cluster.everything().await?;
    for block in [&install, &policy, &samples] {
        println!("{}", cluster.script(block).await?.success()?);
    }
    // A reader waits until the pods run.
    for namespace in ["foo", "bar"] {
        let rolled_out = ["rollout", "status", "--timeout=280s", "-n", namespace];
        for deployment in ["deployment/httpbin", "deployment/sleep"] {
            let waited = cluster.kubectl(&[&rolled_out[..], &[deployment]].concat()).await;
            waited.map_err(|failure| node.explain(failure))?;
        }
    }
    // What a reader does not notice: an Envoy that started before a service of its mesh looks for the name again after
    // 5 s, and kube-proxy leads to a pod about a second after that is ready.
    println!("{}", cluster.script(ANSWERED).await?.success()?);
    // The call in plaintext is refused, as the README says: the script goes on.
    let told = cluster.script(&format!("set +e\n{calls}")).await?;
    println!("{}{}", told.output, told.errors);
    for expected in expected() {
        assert!(told.output.contains(&expected), "{expected:?} is not in {}{}", told.output, told.errors);
    }
    assert_eq!(told.output.matches("origin").count(), 0, "plaintext was answered");

    println!("{}", cluster.script(&clean).await?.success()?);
    assert_eq!(cluster.everything().await?, before);
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
