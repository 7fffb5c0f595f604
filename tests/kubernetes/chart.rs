//! What the Helm chart makes of its values, and which values it refuses: `make test-kubernetes`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use testkit::workspace;

const CHART: &str = "packaging/helm/sds-shim";

/// Runs helm without a cluster, for Kubernetes 1.37, with these values; what it wrote, or what it refused.
fn helm(arguments: &[&str], values: &Value) -> Result<String, String> {
    let mut command = Command::new(workspace().join("target/kubernetes/helm"));
    // What is given later is what counts.
    command.args(&arguments[..1]).args(["--kube-version", "1.37.2", "-f", "-"]).args(&arguments[1..]);
    command.current_dir(workspace());
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("run tests/testkit/install-kubernetes.sh");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(values.to_string().as_bytes()).expect("helm reads its values");
    drop(input);
    let output = child.wait_with_output().expect("helm ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stdout) + &text(&output.stderr)),
    }
}

fn template(values: &Value) -> Result<String, String> {
    let known = ["monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"];
    let known = known.map(|api| ["--api-versions", api]).concat();
    let istio = ["--api-versions", "security.istio.io/v1/PeerAuthentication"];
    helm(&[&["template", "sds-shim", CHART][..], &known, &istio].concat(), values)
}

#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn helm_finds_nothing_to_complain_of() {
    let istio = json!({ "mode": "istio", "namespaces": ["foo"] });
    for values in [json!({}), json!({ "namespaces": ["foo"] }), istio] {
        let told = helm(&["lint", "--strict", CHART], &values).unwrap_or_else(|told| panic!("{values}: {told}"));
        assert!(told.contains("1 chart(s) linted, 0 chart(s) failed"), "{told}");
    }
}

#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn a_mistake_in_the_values_is_refused_and_named() {
    let refused = [
        (json!({ "namespace": ["foo"] }), "additional properties 'namespace' not allowed"),
        (json!({ "mode": "ambient" }), "at '/mode': value must be one of 'standalone', 'istio'"),
        (json!({ "namespaces": ["Foo"] }), "at '/namespaces/0': 'Foo' does not match pattern"),
        (json!({ "namespaces": ["foo", "foo"] }), "at '/namespaces': items at 0 and 1 are equal"),
        (json!({ "mutualTLS": { "mode": "DISABLE" } }), "at '/mutualTLS/mode': value must be one of 'STRICT'"),
        (json!({ "env": { "SDS_SHIM_LGO": "debug" } }), "at '/env': additional properties 'SDS_SHIM_LGO' not allowed"),
        (json!({ "env": { "SDS_SHIM_ARENA_KIB": 4096 } }), "at '/env/SDS_SHIM_ARENA_KIB': got number, want string"),
        (
            json!({ "extraVolumes": [{ "name": "sds-shim-a", "emptyDir": {} }] }),
            "at '/extraVolumes/0/name': 'not' failed",
        ),
        (json!({ "extraVolumes": [{ "name": "a" }] }), "at '/extraVolumes/0': minProperties: got 1, want 2"),
        (json!({ "extraVolumeMounts": [{ "name": "a" }] }), "at '/extraVolumeMounts/0': missing property 'mountPath'"),
        (json!({ "trustDomainAliases": ["Other"] }), "at '/trustDomainAliases/0': 'Other' does not match pattern"),
        (json!({ "ca": { "address": "istiod" } }), "at '/ca/address': 'istiod' does not match pattern"),
        (json!({ "ca": { "tokenSeconds": 60 } }), "at '/ca/tokenSeconds': minimum: got 60, want 600"),
        (json!({ "ca": { "root": { "source": "pem" } } }), "ca.root.pem must hold certificates in PEM"),
        (
            json!({ "ca": { "root": { "source": "clusterTrustBundle" } } }),
            "ca.root.clusterTrustBundle must have either",
        ),
        (json!({ "image": { "digest": "latest" } }), "at '/image/digest': 'latest' does not match pattern"),
        (json!({ "securityContext": { "runAsUser": 0 } }), "at '/securityContext/runAsUser': minimum: got 0, want 1"),
        (json!({ "securityContext": { "privileged": true } }), "additional properties 'privileged' not allowed"),
        (
            json!({ "securityContext": { "seccompProfile": { "type": "Localhost" } } }),
            "at '/securityContext/seccompProfile': missing property 'localhostProfile'",
        ),
        (json!({ "resources": { "limits": { "memory": "much" } } }), "at '/resources/limits/memory': 'much' does not"),
        (json!({ "proxy": { "inboundPort": 80 } }), "at '/proxy/inboundPort': minimum: got 80, want 1,024"),
        (
            json!({ "proxy": { "probePaths": ["healthz"] } }),
            "at '/proxy/probePaths/0': 'healthz' does not match pattern",
        ),
        (json!({ "proxy": { "allowedClients": ["sleep"] } }), "at '/proxy/allowedClients/0': 'sleep' does not match"),
        (
            json!({ "proxy": { "outbound": [{ "service": "a", "namespace": "b", "port": 1 }] } }),
            "at '/proxy/outbound/0': missing property 'serviceAccount'",
        ),
        (workload_api(65534), "at '/workloadAPI/uids/1': 'not' failed"),
        (workload_api(4_294_967_295), "at '/workloadAPI/uids/1': maximum: got"),
        (workload_api(-1), "at '/workloadAPI/uids/1': minimum: got -1, want 0"),
        (json!({ "podMonitor": { "enabled": true } }), "podMonitor.enabled needs metrics.enabled"),
        (json!({ "metrics": { "tlsClients": ["spiffe://a/b"] } }), "metrics.tlsClients needs metrics.enabled"),
        (
            json!({ "metrics": { "tlsClients": ["prometheus"] } }),
            "at '/metrics/tlsClients/0': 'prometheus' does not match",
        ),
        (
            json!({ "mode": "istio", "istio": { "policy": false }, "metrics": { "enabled": true },
                "podMonitor": { "enabled": true } }),
            "podMonitor.enabled needs istio.policy in mode istio",
        ),
        (json!({ "istio": { "templates": "sidecar" } }), "at '/istio/templates': 'sidecar' does not match pattern"),
    ];
    for (values, expected) in refused {
        let told = template(&values).expect_err(&values.to_string());
        assert!(told.contains(expected), "{values}: {told}");
    }
}

/// The Workload API for this user, too.
fn workload_api(uid: i64) -> Value {
    json!({ "workloadAPI": { "enabled": true, "uids": [1000, uid] } })
}

#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn every_user_whom_the_shim_takes_may_have_the_workload_api() {
    for uid in [0, 65533, 65535, 4_294_967_294] {
        let mut values = workload_api(uid);
        values["namespaces"] = json!(["foo"]);
        let told = template(&values).unwrap_or_else(|told| panic!("{values}: {told}"));
        assert!(told.contains(&format!("value: \"1000,{uid}\"")), "{told}");
    }
}

/// Nor is what Istio's sidecar would not heed.
#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn values_of_the_other_mode_are_named() {
    for (values, named) in [
        (json!({ "developmentCA": { "enabled": true } }), "developmentCA.enabled"),
        (json!({ "ca": { "root": { "source": "pem", "pem": "BEGIN CERTIFICATE" } } }), "ca.root.source"),
        (json!({ "ca": { "audience": "other" } }), "ca.audience"),
        (json!({ "mutualTLS": { "networkPolicy": true } }), "mutualTLS.networkPolicy"),
        (json!({ "trustDomainAliases": ["other"] }), "trustDomainAliases"),
        (json!({ "proxy": { "probePaths": ["/"] } }), "proxy"),
        (json!({ "injection": "patch" }), "injection=patch"),
    ] {
        let mut values = values;
        template(&values).unwrap_or_else(|told| panic!("{values}: {told}"));
        values["mode"] = json!("istio");
        let told = template(&values).expect_err(&values.to_string());
        assert!(told.contains(&format!("{named} is for mode standalone: ")), "{values}: {told}");
    }
}

/// What is asked for and cannot be there is not left out in silence.
#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn missing_cluster_features_are_named() {
    let values = json!({ "metrics": { "enabled": true }, "podMonitor": { "enabled": true } });
    let told = helm(&["template", "sds-shim", CHART], &values).expect_err("there is no Prometheus operator");
    assert!(
        told.contains("podMonitor.enabled needs monitoring.coreos.com/v1/PodMonitor, which this cluster"),
        "{told}"
    );
    let old = ["template", "sds-shim", CHART, "--kube-version", "1.35.0"];
    let told = helm(&old, &json!({ "namespaces": ["foo"] })).expect_err("it has no such policies");
    assert!(told.contains("take Kubernetes 1.36 or newer, or injection=patch"), "{told}");
    helm(&old, &json!({ "namespaces": ["foo"], "injection": "patch" })).expect("it takes none");
    let values = json!({ "namespaces": ["foo"], "metrics": { "enabled": true }, "podMonitor": { "enabled": true },
        "prometheusRule": { "enabled": true, "labels": { "release": "prometheus" } } });
    let told = template(&values).expect("all is there");
    for line in ["kind: PodMonitor", "kind: PrometheusRule", "    release: prometheus", "    port: sds-metrics"] {
        assert!(told.lines().any(|found| found == line), "{line:?} is not in {told}");
    }
    // Prometheus does not know the port there, and each kind of address has its own form before a port.
    let mut values = values;
    values["mode"] = json!("istio");
    let told = template(&values).expect("all is there");
    for line in ["      replacement: $1:15022", "      regex: (.*:.*)", "      replacement: \"[$1]:15022\""] {
        assert!(told.lines().any(|found| found == line), "{line:?} is not in {told}");
    }
    // Over mutual TLS there is one port less, not one more.
    values["metrics"]["tlsClients"] = json!(["spiffe://cluster.local/ns/monitoring/*"]);
    values["podMonitor"]["scrapeClass"] = json!("mesh");
    let told = template(&values).expect("all is there");
    for line in ["  scrapeClass: mesh", "    scheme: https", "      replacement: $1:15023"] {
        assert!(told.lines().any(|found| found == line), "{line:?} is not in {told}");
    }
    let variable = "value: \"spiffe://cluster.local/ns/monitoring/*\"";
    assert!(told.contains(variable) && told.contains("SDS_SHIM_ADMIN_TLS") && !told.contains("15022"), "{told}");
}

/// `helm test` has something to run where the chart itself injects.
#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn each_namespace_of_mode_standalone_has_a_test() {
    let tests = |values: Value| {
        let told = template(&values).unwrap_or_else(|told| panic!("{values}: {told}"));
        let tests = told.split("\n---").filter(|document| document.contains("helm.sh/hook: test"));
        tests.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(tests(json!({})), [""; 0]);
    assert_eq!(tests(json!({ "mode": "istio", "namespaces": ["foo"] })), [""; 0]);
    assert_eq!(tests(json!({ "namespaces": ["foo", "bar"] })).len(), 2);
    // Nobody else adds the sidecars there.
    let [test] = &tests(json!({ "namespaces": ["foo"], "injection": "patch" }))[..] else { panic!("not one") };
    for part in ["- name: sds-shim\n", "- name: sds-shim-envoy\n", "- name: sds-shim-token\n", "sds-shim.dev/injected"]
    {
        assert!(test.contains(part), "{part:?} is not in {test}");
    }
    assert!(!test.contains("@APP_PORT@"), "{test}");
}

#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn strictness_is_that_of_istios_whole_mesh_where_it_is_asked_for() {
    for mode in ["STRICT", "PERMISSIVE"] {
        let mut values = json!({ "mode": "istio", "namespaces": ["foo"], "mutualTLS": { "mode": mode } });
        let told = template(&values).expect("it is made");
        assert!(!told.contains("PeerAuthentication"), "{told}");
        values["istio"] = json!({ "peerAuthentication": true });
        let told = template(&values).expect("it is made");
        let text = "  name: default\n  namespace: istio-system\n";
        assert!(told.contains(text) && told.contains(&format!("  mtls:\n    mode: {mode}\n")), "{told}");
    }
}

/// The documents that Helm writes, parsed as far as a line `key: value` goes.
fn authority(rendered: &str) -> Value {
    let secret = rendered.split("\n---").find(|document| document.contains("\nkind: Secret"));
    let secret = secret.expect("the development CA has a Secret");
    let files = secret.lines().filter_map(|line| line.trim().split_once(".pem: "));
    let decode = |text: &str| {
        let text = text.trim_matches('"');
        String::from_utf8(openssl::base64::decode_block(text).expect("base64")).expect("PEM")
    };
    let files: serde_json::Map<_, _> =
        files.map(|(name, text)| (format!("{}.pem", name.trim_matches('"')), decode(text).into())).collect();
    json!({ "developmentCA": { "enabled": true, "files": files }, "namespaces": ["foo"] })
}

/// `helm template`, which Argo CD uses, does not see what is in the cluster.
#[test]
#[ignore = "`make test-kubernetes` runs it: it needs Helm"]
fn a_development_ca_whose_files_are_given_is_the_same_each_time() {
    let values = json!({ "developmentCA": { "enabled": true }, "namespaces": ["foo"] });
    let first = template(&values).unwrap_or_else(|told| panic!("{told}"));
    let given = authority(&first);
    let [one, two] = [(); 2].map(|()| template(&given).unwrap_or_else(|told| panic!("{told}")));
    assert_eq!(one, two);
    assert_eq!(authority(&one), given);
    let mut cut = given;
    cut["developmentCA"]["files"].as_object_mut().expect("files").remove("root-key.pem");
    let told = template(&cut).expect_err("a file is missing");
    assert!(told.contains("at '/developmentCA/files': missing property 'root-key.pem'"), "{told}");
}
