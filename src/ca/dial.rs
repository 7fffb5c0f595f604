use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::{net::TcpStream, time::sleep};

use super::error::CaError;
use crate::{config::CaAddress, resolve};

/// How long an address has for itself before the next one is tried as well (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Where the CA's name led at the last call.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolved(Arc<Mutex<Vec<IpAddr>>>);

impl Resolved {
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, addresses: &[IpAddr]) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses.to_vec();
    }
}

/// A connection to whichever address of the CA takes it first, with half of the call's `limit` for the name at the
/// most.
///
/// # Errors
/// When the name has no address, or none takes a connection. One that is silent is waited for.
pub(super) async fn tcp(address: &CaAddress, limit: Duration, resolved: &Resolved) -> Result<TcpStream, CaError> {
    resolved.set(&[]);
    // Boxed: in the renewal loop, which lives for ever, its state would take room for ever.
    let addresses = Box::pin(resolve::lookup(&address.host, limit / 2)).await;
    let addresses = addresses.map_err(|cause| CaError::Resolve { host: address.host.clone(), cause })?;
    resolved.set(&addresses);
    let connected = first(addresses.into_iter().map(|ip| SocketAddr::new(ip, address.port))).await;
    let stream = connected.map_err(|cause| CaError::Connect { address: address.to_string(), cause })?;
    // The last bytes of a request must not wait for an acknowledgement; without it the call is only slower.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// The first connection that comes about. An address that fails makes place for the next one at once.
#[expect(clippy::disallowed_methods, reason = "these are addresses")]
async fn first(mut addresses: impl Iterator<Item = SocketAddr> + Send) -> io::Result<TcpStream> {
    let mut under_way: Vec<Connecting> = Vec::new();
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        let next = addresses.next();
        let more = next.is_some();
        match next {
            Some(address) => under_way.push(Box::pin(TcpStream::connect(address))),
            None if under_way.is_empty() => return Err(failure),
            None => {}
        }
        let mut head_start = pin!(sleep(HEAD_START));
        let turn = poll_fn(|cx| {
            for index in 0..under_way.len() {
                if let Poll::Ready(connected) = under_way[index].as_mut().poll(cx) {
                    drop(under_way.swap_remove(index));
                    return Poll::Ready(Some(connected));
                }
            }
            if more { head_start.as_mut().poll(cx).map(|()| None) } else { Poll::Pending }
        });
        match turn.await {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => failure = error,
            None => {}
        }
    }
}
