//! Policies of others that put something first: the API server runs policies in no order that names would give.

use serde_json::json;
use testkit::kubernetes::Cluster;

use super::{CHART, SAMPLE, made_so, names, namespaces, pod};

/// Another's policy, as ours is: what it adds comes first.
async fn puts_first(cluster: &Cluster, name: &str) -> testkit::Result {
    let container = format!(
        "Object.spec.initContainers{{name: \"{name}\", image: \"one\", securityContext: \
         Object.spec.initContainers.securityContext{{allowPrivilegeEscalation: false, capabilities: \
         Object.spec.initContainers.securityContext.capabilities{{drop: [\"ALL\"]}}}}}}"
    );
    let expression = format!(
        "(has(object.spec.initContainers) ? [] : [JSONPatch{{op: \"add\", path: \"/spec/initContainers\", value: []}}]) \
         + [JSONPatch{{op: \"add\", path: \"/spec/initContainers/0\", value: {container}}}]"
    );
    let absent =
        format!("!has(object.spec.initContainers) || !object.spec.initContainers.exists(one, one.name == \"{name}\")");
    let kind = |kind: &str, spec| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": name }, "spec": spec,
        })
    };
    cluster
        .create(&kind(
            "MutatingAdmissionPolicy",
            json!({
                "reinvocationPolicy": "IfNeeded",
                "failurePolicy": "Fail",
                "matchConstraints": { "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"],
                }] },
                "matchConditions": [{ "name": "absent", "expression": absent }],
                "mutations": [{ "patchType": "JSONPatch", "jsonPatch": { "expression": expression } }],
            }),
        ))
        .await?;
    cluster.create(&kind("MutatingAdmissionPolicyBinding", json!({ "policyName": name }))).await.map(drop)
}

#[tokio::test]
#[ignore = "`make test-kubernetes` runs it: it needs what `make kubernetes` builds"]
async fn the_shim_is_first_whatever_other_policies_insert() -> testkit::Result {
    let cluster = Cluster::start().await?;
    namespaces(&cluster).await?;
    cluster.helm(&["install", "sds-shim", CHART, "-n", "sds-shim", "--create-namespace", "-f", SAMPLE]).await?;
    for name in ["a-policy", "z-policy"] {
        puts_first(&cluster, name).await?;
    }
    let plain = pod(json!({}), json!({}));
    let made = made_so(&cluster, &plain, |made| names(made, "initContainers").len() == 4).await?;
    let names = names(&made, "initContainers");
    println!("{names:?}");
    assert_eq!(names[..2], ["sds-shim", "sds-shim-envoy"], "{names:?}");
    cluster.stop().await
}
