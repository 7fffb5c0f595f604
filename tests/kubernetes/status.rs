//! `kubectl sds-shim status` by the real kubectl: shims are asked through the API server, which leads to their admin
//! ports: `make test-kubernetes`.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use testkit::{
    Failure,
    development_ca::Fault,
    fixture::{Site, renew},
    kubernetes::{Cluster, Told, own_network},
    shim::Shim,
};
use tonic::Code;

const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 7, 1), Ipv4Addr::new(10, 244, 7, 2)];
/// The second one is told another port, as its manifest says.
const PORTS: [u16; 2] = [15022, 15099];
const IDENTITY: &str = "spiffe://cluster.local/ns/foo/sa/sleep";

/// A pod with a shim in this container, which is a native sidecar if it is called as in the chart.
fn pod(name: &str, container: &str, port: u16) -> Value {
    let admin = json!([{ "name": "SDS_SHIM_ADMIN", "value": format!("0.0.0.0:{port}") }]);
    let mut shim = json!({ "name": container, "image": format!("localhost/{container}:1"), "env": admin });
    let app = json!({ "name": "app", "image": "localhost/app" });
    let spec = if container == "sds-shim" {
        shim["restartPolicy"] = "Always".into();
        json!({ "initContainers": [shim], "containers": [app] })
    } else {
        json!({ "containers": [app, shim] })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": spec,
    })
}

/// What kubelet says of a pod.
///
/// The pod is still `Pending` while its other containers wait for the sidecar.
async fn runs(cluster: &Cluster, namespace: &str, name: &str, phase: &str, address: Ipv4Addr) -> testkit::Result {
    let container = json!({ "name": "sds-shim", "image": "", "imageID": "", "ready": true, "restartCount": 0,
        "state": { "running": {} } });
    let status = json!({ "phase": phase, "podIP": address, "podIPs": [{ "ip": address }],
        "initContainerStatuses": [container] });
    let patch = json!({ "status": status }).to_string();
    let told = cluster.kubectl(&["patch", "pod", name, "-n", namespace, "--subresource=status", "-p", &patch]).await;
    told.map(drop)
}

async fn status(cluster: &Cluster, arguments: &str) -> Result<Told, Failure> {
    let told = cluster.script(&format!("PATH=$PWD/packaging/kubectl:$PATH kubectl sds-shim {arguments}")).await?;
    println!("kubectl sds-shim {arguments}\n{}{}{}\n", told.output, told.errors, told.status);
    Ok(told)
}

/// The row of a pod, from its identity on.
fn row<'a>(told: &'a Told, pod: &str) -> Vec<&'a str> {
    let is_it = |line: &&str| line.split_whitespace().nth(1) == Some(pod);
    let line = told.output.lines().find(is_it).unwrap_or_else(|| panic!("no {pod} in {told:?}"));
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).skip(2).collect()
}

fn down() -> Fault {
    Fault::Status(Code::Unavailable, "down for the test".to_owned())
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn all_sidecars_are_asked_through_the_api_server() -> testkit::Result {
    own_network(&PODS)?;
    let cluster = Cluster::start().await?;
    for namespace in ["foo", "bar"] {
        cluster.kubectl(&["create", "namespace", namespace]).await?;
        cluster.kubectl(&["wait", "--for=create", "-n", namespace, "serviceaccount/default"]).await?;
    }
    let (scenes, mut shims) = ([Site::new().await?, Site::new().await?], Vec::new());
    for (at, (namespace, name, phase)) in [("foo", "one", "Running"), ("bar", "two", "Pending")].into_iter().enumerate()
    {
        let admin = format!("{}:{}", PODS[at], PORTS[at]);
        let shim = scenes[at].shim().env("SDS_SHIM_ADMIN", admin).start()?;
        shim.wait_for_log("certificate issued").await?;
        shim.wait_for_log("serving health, metrics and status").await?;
        shims.push(shim);
        cluster.kubectl_on(&pod(name, "sds-shim", PORTS[at]), &["create", "-n", namespace, "-f", "-"]).await?;
        runs(&cluster, namespace, name, phase, PODS[at]).await?;
    }
    all_is_well(&cluster).await?;
    in_trouble(&cluster, &scenes[1], &shims[1]).await?;
    permissions(&cluster).await?;
    by_name(&cluster).await?;
    cluster.stop().await
}

async fn all_is_well(cluster: &Cluster) -> testkit::Result {
    // There is no kubelet that would exec.
    for options in ["-A", "-A --via proxy"] {
        let told = status(cluster, &format!("status {options}")).await?;
        assert_eq!(told.output.lines().count(), 3, "{told:?}");
        for pod in ["one", "two"] {
            let row = row(&told, pod);
            assert!(row[..2] == [IDENTITY, "ready"] && row[2].starts_with("in ") && row[4] == "0", "{told:?}");
        }
        let lacking = told.output.lines().skip(1).any(|line| !line.ends_with("  -"));
        if lacking {
            println!("NOT TESTED: the exit code where all is well, because this machine lacks a protection");
        }
        assert_eq!(told.status.code(), Some(i32::from(lacking)), "{told:?}");
    }
    let told = status(cluster, "status -n foo --via exec").await?;
    let why = row(&told, "one").pop().unwrap_or_default();
    let is_told = why.starts_with("cannot be asked: error: ") && why.ends_with("pod one does not have a host assigned");
    assert!(told.status.code() == Some(1) && is_told, "{told:?}");
    assert_eq!(told.output.lines().count(), 2, "{told:?}");
    Ok(())
}

async fn in_trouble(cluster: &Cluster, scene: &Site, shim: &Shim) -> testkit::Result {
    scene.ca.set_fault(Some(down()));
    renew(shim)?;
    shim.wait_for_log("renewal failed").await?;
    cluster.kubectl_on(&pod("young", "sds-shim", 15022), &["create", "-n", "bar", "-f", "-"]).await?;
    cluster.kubectl_on(&pod("other", "other", 15022), &["create", "-n", "bar", "-f", "-"]).await?;
    let told = status(cluster, "status -n bar").await?;
    assert_eq!(told.status.code(), Some(1), "{told:?}");
    let two = row(&told, "two");
    assert!(two[1] == "ready" && two[6..].concat().contains("down for the test"), "{told:?}");
    assert_eq!(row(&told, "young")[1..], ["Pending", "-", "-", "-", "-", "the pod is Pending"], "{told:?}");
    // What names a variable of the shim is taken for one.
    assert_eq!(row(&told, "other").pop(), Some("the pod is Pending"));
    Ok(())
}

/// Who may only list pods is told what is lacking, and each of the two permissions suffices.
async fn permissions(cluster: &Cluster) -> testkit::Result {
    let prepare = "
        kubectl -n foo create serviceaccount reader
        kubectl -n foo create role reader --verb=get,list --resource=pods
        kubectl -n foo create rolebinding reader --role=reader --serviceaccount=foo:reader
        cp \"$KUBECONFIG\" \"$HOME/reader\"
        kubectl --kubeconfig=\"$HOME/reader\" config set-credentials user --token=$(kubectl -n foo create token reader)";
    cluster.script(prepare).await?.success()?;
    let told = status(cluster, "status -n foo --kubeconfig $HOME/reader --context tests").await?;
    let why = row(&told, "one").pop().unwrap_or_default();
    for lacking in ["cannot create resource \"pods/exec\"", "cannot get resource \"pods/proxy\""] {
        assert!(why.contains(lacking), "{told:?}");
    }
    let told = status(cluster, "status -A --kubeconfig=$HOME/reader").await?;
    assert!(told.status.code() == Some(1) && told.errors.contains("cannot list resource \"pods\""), "{told:?}");
    let allow = "kubectl -n foo create role proxy --verb=get --resource=pods/proxy
        kubectl -n foo create rolebinding proxy --role=proxy --serviceaccount=foo:reader";
    cluster.script(allow).await?.success()?;
    let told = status(cluster, "status -n foo --kubeconfig $HOME/reader").await?;
    assert_eq!(row(&told, "one")[1], "ready", "{told:?}");
    let allow = "kubectl -n foo create role exec --verb=create --resource=pods/exec
        kubectl -n foo create rolebinding exec --role=exec --serviceaccount=foo:reader";
    cluster.script(allow).await?.success()?;
    let told = status(cluster, "status -n foo --via exec --kubeconfig $HOME/reader").await?;
    // It was let through, to a kubelet that is not there.
    assert!(row(&told, "one").pop().is_some_and(|why| why.ends_with("have a host assigned")), "{told:?}");
    Ok(())
}

/// The API server passes on the name under which it was asked, and a shim wants an address.
async fn by_name(cluster: &Cluster) -> testkit::Result {
    let port = cluster.address().port();
    let prepare = format!(
        "cp \"$KUBECONFIG\" \"$HOME/named\"; cp \"$KUBECONFIG\" \"$HOME/address\"
        printf '127.0.0.1 kubernetes.default.svc\\n' >\"$HOME/hosts\"
        kubectl --kubeconfig=\"$HOME/named\" config set-cluster tests --server=https://kubernetes.default.svc:{port}
        kubectl --kubeconfig=\"$HOME/address\" config set-cluster tests --server=https://127.0.0.1:{port} \\
            --tls-server-name=kubernetes.default.svc"
    );
    cluster.script(&prepare).await?.success()?;
    let script = "export PATH=$PWD/packaging/kubectl:$PATH; unshare --mount sh -c \
                  'mount --bind \"$HOME/hosts\" /etc/hosts; kubectl sds-shim status -n foo --via proxy --kubeconfig \"$HOME/named\"'";
    let told = cluster.script(script).await?;
    println!("by name\n{}{}", told.output, told.errors);
    let why = row(&told, "one").pop().unwrap_or_default();
    assert!(told.status.code() == Some(1) && why.contains("status code 421"), "{told:?}");
    assert!(why.ends_with("; name the API server by its IP address in the kubeconfig (--server, --tls-server-name)"));
    let told = status(cluster, "status -n foo --via proxy --kubeconfig $HOME/address").await?;
    assert_eq!(row(&told, "one")[1], "ready", "{told:?}");
    Ok(())
}
