//! The same calls, made by a bare client: what each CA answers, and where the development CA is stricter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openssl::{asn1::Asn1Time, x509::X509};
use testkit::{
    Failure, OrFail,
    citadel::{Asked, create_certificate, csr},
    development_ca::{Issued, Leaf, TokenIssuer, TokenRequest},
    tls,
};
use tonic::Code;

use crate::upstream::{Kind, Scene, Settings};

const SLEEP: &str = "spiffe://cluster.local/ns/foo/sa/sleep";
const OTHER: &str = "spiffe://cluster.local/ns/foo/sa/other";
const DAY: i64 = 86_400;
/// Seconds by which a lifetime may differ from what is wanted: the machine may be slow.
const LEEWAY: i64 = 30;

/// What comes back.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// Leaf, intermediate and root, an element each; the leaf's URI name and its end, in seconds from now.
    Issued(String, i64),
    /// The words are compared for authentication alone: the rest of them is for people.
    Refused(Code, Option<String>),
}

fn issued(id: &str, seconds: i64) -> Answer {
    Answer::Issued(id.to_owned(), seconds)
}

fn unauthenticated() -> Answer {
    Answer::Refused(Code::Unauthenticated, Some("request authenticate failure".to_owned()))
}

fn refused(code: Code) -> Answer {
    Answer::Refused(code, None)
}

/// One call and its answer by either CA.
struct Row {
    what: &'static str,
    token: Option<String>,
    certificate: Option<Issued>,
    csr: String,
    validity: i64,
    development: Answer,
    istio: Answer,
}

impl Row {
    /// A right call with a token, which both answer alike.
    fn right(what: &'static str, scene: &Scene) -> Result<Self, Failure> {
        Ok(Self {
            what,
            token: Some(scene.ca.mint(|_| {})),
            certificate: None,
            csr: csr(&[SLEEP])?,
            validity: 3600,
            development: issued(SLEEP, 3600),
            istio: issued(SLEEP, 3600),
        })
    }

    fn both(mut self, answer: Answer) -> Self {
        (self.development, self.istio) = (answer.clone(), answer);
        self
    }
}

pub(crate) async fn answers_are_alike(kind: Kind) -> testkit::Result {
    let settings = Settings { max_ttl: Duration::from_secs(86_400), ..Settings::default() };
    let scene = Scene::with(kind, &settings).await?;
    let rows = [tokens(&scene)?, certificates(&scene)?, requests(&scene)?];
    for row in rows.into_iter().flatten() {
        let asked = Asked {
            csr: &row.csr,
            validity: row.validity,
            token: row.token.as_deref(),
            certificate: row.certificate.as_ref(),
        };
        let found = create_certificate(scene.ca.address(), &scene.ca.root_pem(), &asked).await;
        let found = found.map_err(|failure| failure.context(row.what))?;
        let wanted = if kind == Kind::Istio { row.istio } else { row.development };
        let alike = match (&wanted, &found) {
            (Answer::Issued(id, seconds), Ok(chain)) => is_issued(chain, id, *seconds)?,
            (Answer::Refused(code, words), Err(status)) => {
                status.code() == *code && words.as_ref().is_none_or(|words| status.message() == words)
            }
            _ => false,
        };
        assert!(alike, "{}: {wanted:?} is wanted, {found:?} found", row.what);
    }
    Ok(())
}

fn is_issued(chain: &[String], id: &str, seconds: i64) -> Result<bool, Failure> {
    let mut parsed = Vec::new();
    for element in chain {
        parsed.push(X509::stack_from_pem(element.as_bytes()).or_fail("read an element of the answer")?);
    }
    let [leaf, _, _] = &parsed[..] else { return Ok(false) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).or_fail("read the clock")?.as_secs();
    let now = Asn1Time::from_unix(now.cast_signed()).or_fail("read the clock")?;
    let left = now.diff(leaf[0].not_after()).or_fail("compare times")?;
    let left = i64::from(left.days) * DAY + i64::from(left.secs);
    let single = parsed.iter().all(|element| element.len() == 1);
    Ok(single && tls::uri_names(&leaf[0]) == [id] && (left - seconds).abs() <= LEEWAY)
}

/// What is wrong with a token is never said.
fn tokens(scene: &Scene) -> Result<Vec<Row>, Failure> {
    let bad = |what, token: Option<String>| -> Result<Row, Failure> {
        Ok(Row { token, ..Row::right(what, scene)? }.both(unauthenticated()))
    };
    let minted = |what, edit: fn(&mut TokenRequest)| -> Result<Row, Failure> { bad(what, Some(scene.ca.mint(edit))) };
    let mut foreign = None;
    let good = scene.ca.mint(|request| foreign = Some(request.clone()));
    let foreign = foreign.map(|request| TokenIssuer::new().mint(&request));
    let payload_of_another = [
        good.split('.').next().unwrap_or_default(),
        scene.ca.mint(|request| request.service_account = "other".to_owned()).split('.').nth(1).unwrap_or_default(),
        good.split('.').nth(2).unwrap_or_default(),
    ]
    .join(".");
    Ok(vec![
        Row::right("a good token", scene)?,
        bad("neither token nor certificate", None)?,
        bad("not a JWT", Some("opaque".to_owned()))?,
        bad("signed by another issuer's key", foreign)?,
        bad("a payload under another signature", Some(payload_of_another))?,
        minted("expired", |request| (request.not_before, request.lifetime) = (-7200, -1))?,
        minted("not valid yet", |request| (request.not_before, request.lifetime) = (3600, 7200))?,
        minted("another audience", |request| request.audiences = vec!["vault".to_owned()])?,
        minted("no audience", |request| request.audiences.clear())?,
        minted("another issuer", |request| request.issuer = "https://elsewhere".to_owned())?,
        Row {
            token: Some(scene.ca.mint(|request| request.audiences.insert(0, "vault".to_owned()))),
            ..Row::right("one of several audiences", scene)?
        },
    ])
}

fn certificates(scene: &Scene) -> Result<Vec<Row>, Failure> {
    let issue = |id: &str| Some(scene.pki.issue(&Leaf::workload(id, Duration::from_secs(3600))));
    let expired = Some(scene.ca.mint(|request| (request.not_before, request.lifetime) = (-7200, -3600)));
    Ok(vec![
        Row { token: None, certificate: issue(SLEEP), ..Row::right("a certificate alone", scene)? },
        Row { certificate: issue(SLEEP), ..Row::right("both, of the same identity", scene)? },
        // Istio asks its authenticators one after the other, the certificate's first, and the first one that is content
        // decides. The development CA wants all that is presented to be right.
        Row {
            certificate: issue(OTHER),
            csr: csr(&[OTHER])?,
            development: unauthenticated(),
            istio: issued(OTHER, 3600),
            ..Row::right("both, of different identities", scene)?
        },
        Row {
            token: expired,
            certificate: issue(SLEEP),
            development: unauthenticated(),
            ..Row::right("an expired token beside a certificate", scene)?
        },
    ])
}

fn requests(scene: &Scene) -> Result<Vec<Row>, Failure> {
    let asking = |what, validity, answer| -> Result<Row, Failure> {
        Ok(Row { validity, ..Row::right(what, scene)? }.both(answer))
    };
    // Istio writes the caller's identity into the certificate, whatever the CSR says. The development CA is as strict
    // as istio-csr, so that a CSR that asks for more than it should is seen.
    let strict = |what, uris: &[&str], code| -> Result<Row, Failure> {
        Ok(Row { csr: csr(uris)?, development: refused(code), ..Row::right(what, scene)? })
    };
    Ok(vec![
        asking("a day, which is the most", DAY, issued(SLEEP, DAY))?,
        asking("no lifetime", 0, issued(SLEEP, DAY))?,
        asking("a negative lifetime", -5, issued(SLEEP, DAY))?,
        asking("too long a lifetime", DAY + 1, refused(Code::InvalidArgument))?,
        Row { csr: "garbage".to_owned(), ..Row::right("no CSR", scene)? }.both(refused(Code::InvalidArgument)),
        Row { csr: String::new(), ..Row::right("an empty CSR", scene)? }.both(refused(Code::InvalidArgument)),
        strict("a CSR for another identity", &[OTHER], Code::PermissionDenied)?,
        strict("a CSR for two identities", &[SLEEP, OTHER], Code::InvalidArgument)?,
        strict("a CSR without a name", &[], Code::InvalidArgument)?,
    ])
}
