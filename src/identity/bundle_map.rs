//! SPIFFE bundle maps (gRPC proposal A87): JSON with the bundle of each trust domain as SPIFFE Federation has it, a set of
//! JSON Web Keys with a certificate in each.

use std::iter;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use openssl::{pkey::Id, x509::X509};
use serde_json::Value;

use super::{bundle::TrustBundle, facts, spiffe::TrustDomain};
use crate::budget;

/// Keys that are told as left out.
const TOLD: usize = 8;
/// What a key is for that is a trust anchor of certificates.
const X509_SVID: &str = "x509-svid";
/// Curves that a key may lie on, by their bits, and how long their numbers are.
const CURVES: [(u32, &str, usize); 3] = [(256, "P-256", 32), (384, "P-384", 48), (521, "P-521", 66)];

/// A map, and what of it is left out.
pub struct BundleMap {
    /// Trust domains with anchors that can be used, in the order of their names.
    pub domains: Vec<(TrustDomain, TrustBundle)>,
    /// Trust domains of which no anchor can be used, though there are some; one that has none is in neither.
    pub unusable: Vec<TrustDomain>,
    /// What is wrong with which key of which trust domain: the first few.
    pub bad: Vec<String>,
}

impl BundleMap {
    /// Reads one at `now` (Unix seconds), as long as there is `room` for one more anchor of so many bytes. The order of keys
    /// and of domains does not matter.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(text: &str, now: i64, room: fn(usize) -> bool) -> Result<Self, String> {
        if !budget::has_room_for_json(text) {
            return Err("not enough arena memory for its content; raise SDS_SHIM_ARENA_KIB".to_owned());
        }
        let map: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let named = map["trust_domains"].as_object().ok_or("it is not a SPIFFE bundle map: it has no trust_domains")?;
        let mut read = Self { domains: Vec::new(), unusable: Vec::new(), bad: Vec::new() };
        // In the order of their names, as serde_json has them.
        for (name, bundle) in named {
            let Ok(domain) = name.parse::<TrustDomain>() else {
                read.leave_out("a name that is not a trust domain".to_owned());
                continue;
            };
            let (mut anchors, mut whole) = (Vec::new(), true);
            let Some(keys) = bundle["keys"].as_array() else {
                read.leave_out(format!("{domain}: it has no keys"));
                read.unusable.push(domain);
                continue;
            };
            for (index, key) in keys.iter().enumerate() {
                if key["use"] == "jwt-svid" {
                    continue;
                }
                match anchor(key, now, room) {
                    Ok(bundle) => anchors.extend_from_slice(bundle.anchors()),
                    Err(why) => {
                        whole = false;
                        read.leave_out(format!("{domain}: key {} {why}", index + 1));
                    }
                }
            }
            match anchors.is_empty() {
                // It has withdrawn all of its anchors (SPIFFE Trust Domain and Bundle, section 4.1.3).
                true if whole => {}
                true => read.unusable.push(domain),
                false => read.domains.push((domain, TrustBundle::new(anchors))),
            }
        }
        Ok(read)
    }

    fn leave_out(&mut self, what: String) {
        if self.bad.len() < TOLD {
            self.bad.push(what);
        }
    }
}

/// The one anchor of a key.
fn anchor(key: &Value, now: i64, room: fn(usize) -> bool) -> Result<TrustBundle, String> {
    if key["use"] != X509_SVID {
        return Err(format!("is not for {X509_SVID}"));
    }
    let certificates = key["x5c"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [Value::String(certificate)] = certificates else {
        return Err(format!("has {} certificates (x5c) instead of one", certificates.len()));
    };
    let der = STANDARD.decode(certificate).map_err(|_| "has a certificate that is not base64")?;
    if !room(der.len()) {
        return Err("does not fit; raise SDS_SHIM_ARENA_KIB".to_owned());
    }
    let mut pem = Vec::new();
    facts::push_pem(&der, facts::CERTIFICATE, &mut pem);
    let (bundle, _) = TrustBundle::from_pem(&String::from_utf8_lossy(&pem), now)
        .map_err(|error| format!("is not an anchor: {error}"))?;
    Ok(bundle)
}

/// Writes a map of these trust domains, in portions of an anchor each. Anchors with keys of other kinds than RSA and the
/// curves of NIST are left out: whoever reads maps knows no others.
pub fn write(domains: Vec<(String, TrustBundle)>) -> impl Iterator<Item = Vec<u8>> {
    let count = domains.len();
    let of_domain = move |(place, (name, bundle)): (usize, (String, TrustBundle))| {
        let mut first = true;
        let keys = bundle.anchors().to_vec().into_iter().filter_map(move |anchor| {
            let key = key(anchor.der())?;
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            Some(format!("{comma}{key}"))
        });
        let end = if place + 1 < count { "]}," } else { "]}" };
        iter::once(format!("{}:{{\"keys\":[", Value::String(name))).chain(keys).chain(iter::once(end.to_owned()))
    };
    let begin = iter::once("{\"trust_domains\":{".to_owned());
    let text = begin.chain(domains.into_iter().enumerate().flat_map(of_domain));
    text.chain(iter::once("}}\n".to_owned())).map(String::into_bytes)
}

/// A JSON Web Key (RFC 7517) with the certificate of this DER.
fn key(der: &[u8]) -> Option<String> {
    let public = X509::from_der(der).and_then(|certificate| certificate.public_key()).ok()?;
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let key = match public.id() {
        Id::RSA => {
            let rsa = public.rsa().ok()?;
            format!("\"kty\":\"RSA\",\"n\":\"{}\",\"e\":\"{}\"", number(&rsa.n().to_vec()), number(&rsa.e().to_vec()))
        }
        Id::EC => {
            let (_, curve, len) = CURVES.into_iter().find(|(bits, ..)| *bits == public.bits())?;
            // The point is its end (RFC 5480): uncompressed, both coordinates.
            let info = public.public_key_to_der().ok()?;
            let point = info.get(info.len().checked_sub(2 * len + 1)?..)?;
            let (x, y) = point.strip_prefix(&[4])?.split_at(len);
            format!("\"kty\":\"EC\",\"crv\":\"{curve}\",\"x\":\"{}\",\"y\":\"{}\"", number(x), number(y))
        }
        _ => return None,
    };
    Some(format!("{{\"use\":\"{X509_SVID}\",{key},\"x5c\":[\"{}\"]}}", STANDARD.encode(der)))
}

#[cfg(test)]
mod tests {
    use testkit::development_ca::Pki;

    use super::*;

    fn bundle(names: &[&str]) -> TrustBundle {
        let text: String = names.iter().map(|name| Pki::new(name).root_pem()).collect();
        TrustBundle::from_pem(&text, 0).unwrap().0
    }

    fn text(domains: &[(&str, &TrustBundle)]) -> String {
        let domains = domains.iter().map(|(name, bundle)| ((*name).to_owned(), (*bundle).clone())).collect();
        String::from_utf8(write(domains).flatten().collect()).unwrap()
    }

    #[test]
    fn a_written_map_is_read_back() {
        let (one, two) = (bundle(&["a", "b"]), bundle(&["c"]));
        for domains in [&[("one", &one), ("two.example", &two)][..], &[("one", &one)], &[]] {
            let read = BundleMap::read(&text(domains), 1, |_| true).unwrap();
            assert!(read.bad.is_empty() && read.unusable.is_empty(), "{:?}", read.bad);
            assert_eq!(read.domains.len(), domains.len());
            for ((domain, bundle), (name, written)) in read.domains.iter().zip(domains) {
                assert!(domain.to_string() == *name && bundle.is_same_set(written));
            }
        }
    }

    #[test]
    fn bad_keys_are_left_out_and_named() {
        let good = text(&[("one", &bundle(&["a"]))]);
        let map: Value = serde_json::from_str(&good).unwrap();
        let mut key = map["trust_domains"]["one"]["keys"][0].clone();
        let mut keys = vec![key.clone()];
        key["use"] = "jwt-svid".into();
        keys.push(key.clone());
        key["use"] = "sig".into();
        keys.push(key.clone());
        key["use"] = X509_SVID.into();
        key["x5c"] = serde_json::json!(["!", "!"]);
        keys.push(key.clone());
        key["x5c"] = serde_json::json!(["!"]);
        keys.push(key.clone());
        key["x5c"] = serde_json::json!(["AAAA"]);
        keys.push(key.clone());
        keys.reverse();
        let only_bad = serde_json::json!({ "keys": [key] });
        let map =
            serde_json::json!({ "trust_domains": { "one": { "keys": keys }, "bad": only_bad, "no domain!": {} } });
        let read = BundleMap::read(&map.to_string(), 1, |_| true).unwrap();
        assert_eq!((read.domains.len(), read.domains[0].1.anchors().len()), (1, 1));
        assert_eq!(read.unusable.iter().map(ToString::to_string).collect::<Vec<_>>(), ["bad"]);
        let told = read.bad.join("; ");
        for part in [
            "one: key 1 is not an anchor",
            "one: key 2 has a certificate that is not base64",
            "one: key 3 has 2 certificates",
            "one: key 4 is not for x509-svid",
            "bad: key 1 is not an anchor",
            "a name that is not a trust domain",
        ] {
            assert!(told.contains(part), "{part:?} is not in {told}");
        }
        assert!(!told.contains("key 5") && !told.contains("key 6"), "{told}");
        let full = BundleMap::read(&good, 1, |_| false).unwrap();
        assert!(full.domains.is_empty() && full.bad[0].contains("SDS_SHIM_ARENA_KIB"));
    }

    #[test]
    fn an_invalid_map_is_rejected() {
        for text in ["", "[]", "{}", "{\"trust_domains\":[]}", "-----BEGIN CERTIFICATE-----", "{\"keys\":[]}"] {
            assert!(BundleMap::read(text, 1, |_| true).is_err(), "{text:?}");
        }
        assert!(BundleMap::read(&format!("{}1{}", "[".repeat(5000), "]".repeat(5000)), 1, |_| true).is_err());
    }
}
