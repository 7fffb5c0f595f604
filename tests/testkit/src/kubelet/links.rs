//! Variables by which pods are told of services.

use std::net::Ipv4Addr;

use super::manifest::Service;

pub(super) struct Link<'a> {
    pub(super) service: &'a Service,
    pub(super) address: Ipv4Addr,
}

impl Link<'_> {
    /// Names and values, as for Docker's links.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let shout = |name: &str| name.to_uppercase().replace('-', "_");
        let (name, address) = (shout(&self.service.metadata.name), self.address.to_string());
        let mut variables = vec![(format!("{name}_SERVICE_HOST"), address.clone())];
        for (index, port) in self.service.spec.ports.iter().enumerate() {
            let number = port.port;
            let link = format!("tcp://{address}:{number}");
            if index == 0 {
                variables.push((format!("{name}_SERVICE_PORT"), number.to_string()));
                variables.push((format!("{name}_PORT"), link.clone()));
            }
            if let Some(port) = &port.name {
                variables.push((format!("{name}_SERVICE_PORT_{}", shout(port)), number.to_string()));
            }
            let prefix = format!("{name}_PORT_{number}_TCP");
            variables.push((format!("{prefix}_PROTO"), "tcp".to_owned()));
            variables.push((format!("{prefix}_PORT"), number.to_string()));
            variables.push((format!("{prefix}_ADDR"), address.clone()));
            variables.push((prefix, link));
        }
        variables
    }
}
