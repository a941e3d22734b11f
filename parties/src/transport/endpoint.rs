//! One UDP socket, many authenticated connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::LinkConfig;
use crate::error::{Code, Error, Result};
use crate::identity::{Identity, Pin};
use crate::tls;
use crate::transport::ControlStream;
use crate::transport::reset::{RandomIds, ResetKey};

const SOCKET_BUFFER_BYTES: usize = 8 << 20;
const MIN_WINDOW: u64 = 16 << 20;
/// Largest packet between processes of one machine: ten of them, quinn's most, pass the kernel as one.
const LOOPBACK_PACKET: u16 = 6400;
/// What an enrolled client may have open. A peer whose key is not known yet may open nothing.
pub const CLIENT_STREAMS: u32 = 4;
/// Bytes that a peer whose key is not known yet may send, beyond its handshake.
const STRANGER_WINDOW: u64 = 4 << 10;

/// A UDP socket with this process's identity.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    identity: Arc<Identity>,
    link: LinkConfig,
    /// For connections from this machine.
    loopback: Option<Arc<quinn::ServerConfig>>,
}

impl Endpoint {
    /// Accepts connections on `listen`, and dials from it.
    ///
    /// # Errors
    /// [`Error::Config`] if the address cannot be bound.
    pub fn listen(listen: SocketAddr, identity: Arc<Identity>, link: &LinkConfig) -> Result<Self> {
        let crypto = QuicServerConfig::try_from(tls::server_config(&identity)?)
            .map_err(|e| Error::Internal(e.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let mut loopback = server.clone();
        server.transport_config(Arc::new(closed(transport_config(link, false))));
        loopback.transport_config(Arc::new(closed(transport_config(link, true))));
        let socket = socket(listen)
            .map_err(|e| Error::Config { file: "listen".into(), reason: format!("{listen}: {e}") })?;
        Self::build(Some((server, loopback)), socket, identity, link)
    }

    /// Dials only.
    ///
    /// # Errors
    /// [`Error::Config`] if no UDP socket can be made.
    pub fn dialing(identity: Arc<Identity>, link: &LinkConfig) -> Result<Self> {
        let socket = socket((Ipv6Addr::UNSPECIFIED, 0).into())
            .or_else(|_| socket((Ipv4Addr::UNSPECIFIED, 0).into()))
            .map_err(|e| Error::Config { file: "UDP socket".into(), reason: e.to_string() })?;
        Self::build(None, socket, identity, link)
    }

    fn build(
        server: Option<(quinn::ServerConfig, quinn::ServerConfig)>,
        socket: std::net::UdpSocket,
        identity: Arc<Identity>,
        link: &LinkConfig,
    ) -> Result<Self> {
        let (server, loopback) = server.unzip();
        let mut config = quinn::EndpointConfig::default();
        if server.is_some() {
            // Processes that only dial share a key, but no address: nobody takes one for another that was started anew.
            config.reset_key(Arc::new(ResetKey::of(&identity)?)).cid_generator(|| Box::new(RandomIds));
        }
        config.max_udp_payload_size(LOOPBACK_PACKET).map_err(|e| Error::Internal(e.to_string()))?;
        let inner = quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
            .map_err(|e| Error::Internal(format!("UDP socket: {e}")))?;
        Ok(Self { inner, identity, link: link.clone(), loopback: loopback.map(Arc::new) })
    }

    /// The bound address.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.local_addr().map_err(|e| Error::Internal(e.to_string()))
    }

    /// Connects to `peer`, who must present the key `pin`.
    ///
    /// # Errors
    /// [`Error::Pin`] for another key, [`Error::Timeout`], [`Error::Link`].
    pub async fn connect(
        &self,
        peer: &str,
        address: &str,
        pin: Pin,
        timeout: Duration,
    ) -> Result<Connection> {
        let link = |reason: String| Error::Link { peer: peer.into(), reason };
        let dial = async {
            let v4_only = self.inner.local_addr().is_ok_and(|a| a.is_ipv4());
            let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host(address)
                .await
                .map_err(|e| link(format!("{address}: {e}")))?
                .filter(|a| a.is_ipv4() || !v4_only)
                .collect();
            // Many hosts have IPv6 names without IPv6 routes.
            addresses.sort_by_key(SocketAddr::is_ipv6);
            let mut last = link(format!("{address} has no usable address"));
            for target in addresses {
                match self.connect_to(peer, target, pin).await {
                    Ok(connection) => return Ok(connection),
                    Err(e) => last = e,
                }
            }
            Err(last)
        };
        tokio::time::timeout(timeout, dial).await.unwrap_or_else(|_| {
            let what = format!("connection to {address}");
            Err(Error::Timeout { peer: peer.into(), what, seconds: timeout.as_secs() })
        })
    }

    async fn connect_to(&self, peer: &str, target: SocketAddr, pin: Pin) -> Result<Connection> {
        let found = Arc::new(Mutex::new(None));
        let crypto = tls::client_config(&self.identity, peer, pin, found.clone())?;
        let crypto = QuicClientConfig::try_from(crypto).map_err(|e| Error::Internal(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport_config(&self.link, is_loopback(target))));
        let connecting = self
            .inner
            .connect_with(config, target, tls::SERVER_NAME)
            .map_err(|e| Error::Link { peer: peer.into(), reason: format!("{target}: {e}") })?;
        match connecting.await {
            Ok(inner) => Ok(Connection { inner, peer: peer.into(), pin, link: self.link.clone() }),
            Err(e) => {
                let found = *found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Err(match found {
                    Some(found) => Error::Pin { peer: peer.into(), expected: pin, found },
                    None => lost(peer, &e),
                })
            }
        }
    }

    /// The next incoming connection, not yet authenticated; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        let inner = self.inner.accept().await?;
        let config = self.loopback.clone().filter(|_| is_loopback(inner.remote_address()));
        Some(Incoming { inner, link: self.link.clone(), config })
    }

    /// Ends all connections and waits until peers were told.
    pub async fn close(&self, code: Code, reason: &str) {
        self.inner.set_server_config(None);
        self.inner.close(code.to_wire().into(), reason.as_bytes());
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inner.wait_idle()).await;
    }
}

/// A connection in the making.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
    link: LinkConfig,
    /// Instead of the endpoint's.
    config: Option<Arc<quinn::ServerConfig>>,
}

impl Incoming {
    /// Finishes the handshake.
    ///
    /// # Errors
    /// [`Error::Link`] with the peer's reason, [`Error::Timeout`].
    pub async fn handshake(self, timeout: Duration) -> Result<Connection> {
        let address = self.inner.remote_address().to_string();
        let connecting = match self.config {
            Some(config) => self.inner.accept_with(config),
            None => self.inner.accept(),
        };
        let connecting = connecting.map_err(|e| lost(&address, &e))?;
        let inner = tokio::time::timeout(timeout, connecting)
            .await
            .map_err(|_| Error::Timeout {
                peer: address.clone(),
                what: "handshake".into(),
                seconds: timeout.as_secs(),
            })?
            .map_err(|e| lost(&address, &e))?;
        let pin = peer_pin(&inner)
            .ok_or_else(|| Error::Link { peer: address.clone(), reason: "it has no key".into() })?;
        Ok(Connection { inner, peer: address, pin, link: self.link })
    }

    /// Where it comes from.
    pub fn from(&self) -> IpAddr {
        self.inner.remote_address().ip()
    }

    /// Whether the peer has to show first that it receives at the address it sends from.
    pub fn may_retry(&self) -> bool {
        self.inner.may_retry()
    }

    /// Has it show that, at the price of a round trip.
    pub fn retry(self) {
        // Refused only if it has shown it already.
        let _ = self.inner.retry();
    }

    /// Turns the peer away before any work.
    pub fn refuse(self) {
        self.inner.refuse();
    }
}

fn peer_pin(connection: &quinn::Connection) -> Option<Pin> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>()?;
    Pin::of_certificate(chain.first()?).ok()
}

/// An authenticated connection.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
    peer: String,
    pin: Pin,
    link: LinkConfig,
}

impl Connection {
    /// The peer's key.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// What errors call the peer.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Gives the peer a better name than its address, once its key says who it is.
    #[must_use]
    pub fn named(self, peer: String) -> Self {
        Self { peer, ..self }
    }

    /// Lets an enrolled client open streams and send pictures.
    pub fn admit(&self) {
        self.inner.set_receive_window(var_int(stream_window(&self.link)));
        self.inner.set_max_concurrent_bi_streams(CLIENT_STREAMS.into());
    }

    /// Lets a node of the cluster have `sessions` sessions; strangers keep small limits.
    /// `waiting` more streams may be open without a session: requests of clients that the other server has not got.
    pub fn trust(&self, sessions: usize, waiting: usize) {
        let streams = u32::try_from(4 * sessions + waiting + 16).unwrap_or(u32::MAX);
        self.inner.set_max_concurrent_bi_streams(streams.into());
        // Unread streams of some sessions must not hold up the others.
        let window = stream_window(&self.link).saturating_mul(sessions as u64 + 2);
        self.inner.set_receive_window(var_int(window));
    }

    /// Opens a stream for control messages. The peer sees it with the first message.
    ///
    /// # Errors
    /// [`Error::Link`].
    pub async fn open(&self, timeout: Duration) -> Result<ControlStream> {
        let opened = tokio::time::timeout(timeout, self.inner.open_bi()).await.map_err(|_| {
            Error::Timeout { peer: self.peer.clone(), what: "free stream".into(), seconds: timeout.as_secs() }
        })?;
        let (send, recv) = opened.map_err(|e| lost(&self.peer, &e))?;
        Ok(ControlStream::new(self.peer.clone(), send, recv, timeout))
    }

    /// The next stream that the peer opens.
    ///
    /// # Errors
    /// [`Error::Link`] once the connection is closed.
    pub async fn accept(&self, timeout: Duration) -> Result<ControlStream> {
        let (send, recv) = self.inner.accept_bi().await.map_err(|e| lost(&self.peer, &e))?;
        Ok(ControlStream::new(self.peer.clone(), send, recv, timeout))
    }

    /// Waits until the connection is gone.
    pub async fn closed(&self) -> Error {
        lost(&self.peer, &self.inner.closed().await)
    }

    /// Whether the peer closed the connection because it shuts down.
    pub fn was_drained(&self) -> bool {
        match self.inner.close_reason() {
            Some(ConnectionError::ApplicationClosed(close)) => {
                Code::from_wire(close.error_code.into_inner()) == Code::Draining
            }
            _ => false,
        }
    }

    /// Whether the connection is still there.
    pub fn is_open(&self) -> bool {
        self.inner.close_reason().is_none()
    }

    /// Ends the connection, and every stream of it.
    pub fn close(&self, code: Code, reason: &str) {
        self.inner.close(code.to_wire().into(), reason.as_bytes());
    }
}

/// Says why a connection ended.
pub(crate) fn lost(peer: &str, e: &ConnectionError) -> Error {
    if let ConnectionError::ApplicationClosed(close) = e {
        // Turned away, rather than cut off.
        let code = Code::from_wire(close.error_code.into_inner());
        let text = String::from_utf8_lossy(&close.reason);
        if matches!(code, Code::NotAllowed | Code::Busy) && !text.is_empty() {
            return Error::Refused { peer: peer.into(), code, text: printable(&text) };
        }
    }
    let reason = match e {
        ConnectionError::ApplicationClosed(close) => {
            let code = Code::from_wire(close.error_code.into_inner());
            match std::str::from_utf8(&close.reason) {
                Ok(text) if !text.is_empty() => format!("closed by the peer: {}", printable(text)),
                _ => format!("closed by the peer: {code}"),
            }
        }
        ConnectionError::ConnectionClosed(close) => {
            format!("refused by the peer: {}", printable(&String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::TimedOut => "nothing was heard for too long".into(),
        ConnectionError::LocallyClosed => "closed here".into(),
        other => other.to_string(),
    };
    Error::Link { peer: peer.into(), reason }
}

/// A peer's words, without what could disturb a terminal or a log.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(600).collect()
}

fn stream_window(link: &LinkConfig) -> u64 {
    (2.0 * bandwidth_delay(link)).max(MIN_WINDOW as f64) as u64
}

/// Bytes on the way at full speed.
fn bandwidth_delay(link: &LinkConfig) -> f64 {
    link.rtt_ms * 1e-3 * link.bandwidth_mbit * 1e6 / 8.0
}

fn var_int(n: u64) -> VarInt {
    VarInt::from_u64(n).unwrap_or(VarInt::MAX)
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The defaults of QUIC suit web pages: on a long link they cost seconds before the first layer.
fn transport_config(link: &LinkConfig, loopback: bool) -> TransportConfig {
    let window = stream_window(link);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(var_int(window))
        .receive_window(var_int(window))
        .send_window(window.saturating_mul(4))
        .max_concurrent_bidi_streams(CLIENT_STREAMS.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .initial_rtt(Duration::from_secs_f64((link.rtt_ms * 1.2e-3).max(2e-3)))
        .keep_alive_interval(Some(Duration::from_secs_f64(link.keep_alive_s)))
        .max_idle_timeout(IdleTimeout::try_from(Duration::from_secs_f64(link.idle_timeout_s)).ok());
    if loopback {
        // Found out by probes, as elsewhere, where looking for more than Ethernet's would take many losses.
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(LOOPBACK_PACKET);
        config.mtu_discovery_config(Some(discovery));
    }
    let mut cubic = CubicConfig::default();
    // A first flight of one bandwidth-delay product, instead of ten packets and many round trips.
    cubic.initial_window((bandwidth_delay(link) as u64).clamp(64 << 10, 8 << 20));
    config.congestion_controller_factory(Arc::new(cubic));
    config
}

/// The same for a peer that has still to show who it is: no stream, and next to no memory.
fn closed(mut config: TransportConfig) -> TransportConfig {
    config.max_concurrent_bidi_streams(0u32.into()).receive_window(var_int(STRANGER_WINDOW));
    config
}

fn socket(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the system may allow less.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
