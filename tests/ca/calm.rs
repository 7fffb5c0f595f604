//! Who stands before a CA may end a call because it is asked too much (HTTP/2's ENHANCE_YOUR_CALM, RFC 9113, section 7):
//! that is overload, and not a broken connection.

use testkit::{OrFail, door::own_address, fixture::Site};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The port on which a CA speaks without TLS.
const IN_CLEAR: u16 = 15010;

/// An HTTP/2 frame of nothing but this.
fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
    [&[0, 0, content.len() as u8, kind, flags, 0, 0, 0, stream], content].concat()
}

#[tokio::test]
async fn enhance_your_calm_is_overload() -> testkit::Result {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const RST_STREAM: u8 = 3;
    const CALM: [u8; 4] = [0, 0, 0, 11];
    let scene = Site::new().await?;
    let address = (own_address().ip(), IN_CLEAR);
    let listener = TcpListener::bind(address).await.or_fail("listen")?;
    let server = tokio::spawn(async move {
        let ends = [frame(GOAWAY, 0, 0, &[&[0; 4][..], &CALM].concat()), frame(RST_STREAM, 0, 1, &CALM)];
        for end in ends.iter().cycle() {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let (mut read, mut seen) = ([0; 4096], Vec::new());
            drop(stream.write_all(&frame(SETTINGS, 0, 0, &[])).await);
            // Until the request's headers are there: a frame of type 1 on stream 1.
            while !seen.windows(6).any(|bytes: &[u8]| bytes[0] == 1 && bytes[2..] == [0, 0, 0, 1]) {
                match stream.read(&mut read).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => seen.extend_from_slice(&read[..count]),
                }
            }
            drop(stream.write_all(end).await);
            // What the client still sends is read, so that its end is no reset.
            while stream.read(&mut read).await.is_ok_and(|count| count > 0) {}
        }
    });
    let mut shim = scene.shim().env("CA_ADDR", format!("{}:{IN_CLEAR}", address.0)).start()?;
    shim.wait_for_log("the CA is overloaded: it ended the call with HTTP/2's ENHANCE_YOUR_CALM").await?;
    let failures = "sds_shim_renewal_failures_total{reason=";
    for _ in 0..2 {
        let metrics = shim.admin("/metrics").await?.text();
        let of = |reason: &str| {
            let start = format!("{failures}\"{reason}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        assert!(of("overload") >= 1.0 && of("transport") == 0.0, "{metrics}");
        let mark = shim.log().mark();
        testkit::fixture::renew(&shim)?;
        // The same cause is told once; that it was tried again is seen in the count.
        drop(shim.wait_for_log_after(mark, "renewal requested by signal").await?);
    }
    server.abort();
    Ok(())
}
