//! What a pod is told about itself: fields of its manifest, variables of its containers.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{
    Cluster,
    manifest::{Container, FieldRef, Pod, ValueFrom, Variable},
    network::NODE,
};
use crate::Failure;

/// The node's name where the manifest has none.
const NODE_NAME: &str = "node";

/// A pod, and what is known of it beyond its manifest.
pub(super) struct Facts<'a> {
    pub(super) pod: &'a Pod,
    pub(super) uid: String,
    pub(super) address: Ipv4Addr,
    /// The variables that tell of services.
    pub(super) links: &'a BTreeMap<String, String>,
}

impl Facts<'_> {
    pub(super) fn service_account(&self) -> &str {
        self.pod.spec.service_account_name.as_deref().unwrap_or("default")
    }

    /// A field by its path.
    pub(super) fn field(&self, reference: &FieldRef) -> Result<String, Failure> {
        let (path, metadata) = (reference.field_path.as_str(), &self.pod.metadata);
        let entry = |kind: &str| path.strip_prefix(kind)?.strip_prefix("['")?.strip_suffix("']");
        let text = match path {
            "metadata.name" => metadata.name.clone(),
            "metadata.namespace" => metadata.namespace.clone(),
            "metadata.uid" => self.uid.clone(),
            "metadata.labels" => listed(&metadata.labels),
            "metadata.annotations" => listed(&metadata.annotations),
            "spec.serviceAccountName" => self.service_account().to_owned(),
            "spec.nodeName" => self.pod.spec.node_name.clone().unwrap_or_else(|| NODE_NAME.to_owned()),
            "status.podIP" | "status.podIPs" => self.address.to_string(),
            "status.hostIP" | "status.hostIPs" => NODE.to_string(),
            _ => match (entry("metadata.labels"), entry("metadata.annotations")) {
                // One that is not there is empty, as in Kubernetes.
                (Some(key), _) => metadata.labels.get(key).cloned().unwrap_or_default(),
                (_, Some(key)) => metadata.annotations.get(key).cloned().unwrap_or_default(),
                _ => return Err(Failure::new(format!("the field {path} is not known here"))),
            },
        };
        Ok(text)
    }

    /// The variables of a container. A value may refer to those before it.
    pub(super) fn variables(
        &self,
        container: &Container,
        cluster: &dyn Cluster,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let mut known = self.links.clone();
        for Variable { name, value, value_from } in &container.env {
            let value = match (value, value_from) {
                (value, None) => expand(value.as_deref().unwrap_or_default(), &known),
                (None, Some(ValueFrom::FieldRef(reference))) => self.field(reference)?,
                (None, Some(ValueFrom::ConfigMapKeyRef(key))) => {
                    let map = cluster.config_map(&self.pod.metadata.namespace, &key.name)?;
                    match map.and_then(|mut map| map.remove(&key.key)) {
                        Some(value) => value,
                        None if key.optional => continue,
                        None => return Err(Failure::new(format!("{name}: no {} in {}", key.key, key.name))),
                    }
                }
                (Some(_), Some(_)) => return Err(Failure::new(format!("{name} has two values"))),
            };
            known.insert(name.clone(), value);
        }
        Ok(known)
    }
}

/// As files of a downward API have it.
fn listed(texts: &BTreeMap<String, String>) -> String {
    texts.iter().map(|(name, value)| format!("{name}={value:?}")).collect::<Vec<_>>().join("\n")
}

/// Puts variables in the place of `$(NAME)`; `$$` is a dollar sign, and what is not known stays as it is.
pub(super) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let (mut expanded, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        expanded += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => expanded += value,
                None => expanded += &format!("$({name})"),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does_it() {
        let known = BTreeMap::from([("NAME".to_owned(), "sleep".to_owned()), ("NS".to_owned(), "foo".to_owned())]);
        for (text, expected) in [
            ("$(NAME).$(NS)", "sleep.foo"),
            ("$$(NAME)", "$(NAME)"),
            ("$(OTHER) $NAME ${NAME}", "$(OTHER) $NAME ${NAME}"),
            ("$$$(NAME)$", "$sleep$"),
            ("$(NAME", "$(NAME"),
        ] {
            assert_eq!(expand(text, &known), expected);
        }
    }
}
