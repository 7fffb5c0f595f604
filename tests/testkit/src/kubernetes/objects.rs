//! What a test does with the objects of a cluster, on behalf of who else would do it.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Cluster, object, program};
use crate::{Failure, OrFail, PATIENCE, POLL};

/// Kinds that come and go by themselves, or are no more than another view of objects.
const UNCOUNTED: &[&str] = &["componentstatuses", "events", "events.events.k8s.io", "leases.coordination.k8s.io"];

impl Cluster {
    /// Makes a namespace whose pods must keep the restricted Pod Security Standard, and waits until it has what every
    /// namespace has.
    pub async fn restricted_namespace(&self, name: &str) -> crate::Result {
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        let metadata = json!({ "name": name, "labels": labels });
        self.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata })).await?;
        // kubectl waits for one only.
        for common in ["serviceaccount/default", "configmap/kube-root-ca.crt"] {
            self.kubectl(&["wait", "--for=create", "-n", name, common]).await?;
        }
        Ok(())
    }

    /// Brings in the kinds of object that Istio and the Prometheus operator do.
    pub async fn install_kinds(&self) -> crate::Result {
        let directory = program("kubectl")?.with_file_name("kinds");
        let files = fs::read_dir(&directory).or_fail(format!("list {}", directory.display()))?.flatten();
        let files: Vec<_> = files.flat_map(|file| ["-f".to_owned(), file.path().display().to_string()]).collect();
        let arguments = [&["create"][..], &files.iter().map(String::as_str).collect::<Vec<_>>()].concat();
        self.kubectl(&arguments).await?;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]).await.map(drop)
    }

    /// Every object of every kind that can be listed, as `KIND NAMESPACE/NAME`.
    pub async fn everything(&self) -> Result<BTreeSet<String>, Failure> {
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await?;
        let kinds: Vec<_> = kinds.lines().filter(|kind| !UNCOUNTED.contains(kind)).collect();
        let listed = self.get(&[&kinds.join(","), "-A", "--ignore-not-found"]).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = |object: &Value| {
            let metadata = &object["metadata"];
            let kind = format!("{}/{}", text(&object["apiVersion"]), text(&object["kind"]));
            format!("{kind} {}/{}", text(&metadata["namespace"]), text(&metadata["name"]))
        };
        let objects = listed["items"].as_array().ok_or_else(|| Failure::new("kubectl listed nothing"))?;
        Ok(objects.iter().map(name).collect())
    }

    /// The one pod with this label, as soon as there is one that stays.
    pub async fn pod(&self, namespace: &str, label: &str) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut pods = self.get(&["pods", "-n", namespace, "-l", label]).await?;
            match pods["items"].as_array_mut().map(std::mem::take).unwrap_or_default().as_mut_slice() {
                [only] => return Ok(only.take()),
                other if Instant::now() > deadline => {
                    let sets = self.kubectl(&["describe", "replicasets", "-n", namespace]).await?;
                    return Err(Failure::new(format!("{} pods {label} in {namespace}: {sets}", other.len())));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// Waits until the policies of the mesh are in force for the pods of a namespace: the API server reads new ones
    /// once a second, each kind for itself, and refuses the pod where the one that injects comes last. `pod` is a pod as
    /// somebody would make it.
    pub async fn injects(&self, namespace: &str, pod: &Value) -> crate::Result {
        let deadline = Instant::now() + PATIENCE;
        let arguments = ["create", "--dry-run=server", "-o", "json", "-n", namespace, "-f", "-"];
        loop {
            let made = self.kubectl_on(pod, &arguments).await;
            match made.and_then(|text| object(&text)) {
                Ok(made) if !made["spec"]["initContainers"].is_null() => return Ok(()),
                made if Instant::now() > deadline => {
                    let told = made.map_or_else(|refused| refused.to_string(), |_| "they are made without".to_owned());
                    return Err(Failure::new(format!("pods of {namespace} are not injected: {told}")));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// The token that a pod's projected volume asks for, as kubelet asks for it: bound to the pod.
    pub async fn token(&self, pod: &Value, volume: &str) -> Result<String, Failure> {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let mut sources =
            volumes.filter(|one| one["name"] == volume).flat_map(|one| one["projected"]["sources"].as_array());
        let asked = sources.find_map(|sources| sources.iter().find_map(|source| source.get("serviceAccountToken")));
        let asked = asked.ok_or_else(|| Failure::new(format!("the pod has no volume {volume} with a token")))?;
        let metadata = &pod["metadata"];
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"] });
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let account = text(&pod["spec"]["serviceAccountName"]);
        self.request_token(
            &text(&metadata["namespace"]),
            &account,
            &json!({
                "audiences": asked["audience"].as_str().map(|audience| vec![audience]).unwrap_or_default(),
                "expirationSeconds": asked["expirationSeconds"],
                "boundObjectRef": bound,
            }),
        )
        .await
    }

    /// A token of a service account by a TokenRequest with this `spec`.
    pub async fn request_token(&self, namespace: &str, account: &str, spec: &Value) -> Result<String, Failure> {
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = object(&self.kubectl_on(&request, &["create", "--raw", &path, "-f", "-"]).await?)?;
        let token = answer["status"]["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| Failure::new(format!("a TokenRequest for {account} was answered without a token")))
    }

    /// Waits until the API server believes a token no longer: for some seconds it remembers tokens that were good.
    pub async fn forgets(&self, token: &str, audience: &str) -> crate::Result {
        let spec = json!({ "token": token, "audiences": [audience] });
        let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec });
        let deadline = Instant::now() + PATIENCE;
        while self.create(&review).await?["status"]["authenticated"] == true {
            if Instant::now() > deadline {
                return Err(Failure::new("the API server still believes the token"));
            }
            sleep(POLL).await;
        }
        Ok(())
    }
}
