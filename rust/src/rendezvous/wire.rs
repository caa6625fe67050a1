//! The messages of `keynet.rendezvous.v1` (python/keynet/rendezvous/v1/rendezvous.proto), and the one call that there is.
//!
//! Some small messages are written down here rather than generated, so that building needs no protocol compiler; the tests with the
//! Python server, whose code is generated, hold the two equal.

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeMessage {
    #[prost(oneof = "FromNode", tags = "1, 2, 3, 4")]
    pub kind: Option<FromNode>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FromNode {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Signal(Signal),
    #[prost(message, tag = "3")]
    Refresh(Refresh),
    #[prost(message, tag = "4")]
    Uses(Uses),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct RendezvousMessage {
    #[prost(oneof = "FromRendezvous", tags = "1, 2, 3, 4, 6")]
    pub kind: Option<FromRendezvous>,
    /// With a Signal: where the rendezvous sees its sender.
    #[prost(string, tag = "5")]
    pub observed: String,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum FromRendezvous {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Signal(Signal),
    #[prost(message, tag = "3")]
    Undelivered(Undelivered),
    #[prost(message, tag = "4")]
    Relays(Relays),
    #[prost(message, tag = "6")]
    Going(Going),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(string, tag = "1")]
    pub agent: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Refresh {}

/// The relays that this node uses, of those that the rendezvous has named.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Uses {
    #[prost(string, repeated, tag = "1")]
    pub relays: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    #[prost(string, tag = "1")]
    pub observed: String,
    #[prost(uint32, tag = "2")]
    pub refresh_seconds: u32,
    #[prost(string, repeated, tag = "3")]
    pub stun: Vec<String>,
    /// Its clock, in milliseconds since 1970; 0: it does not say.
    #[prost(uint64, tag = "4")]
    pub unix_milliseconds: u64,
}

/// The rendezvous is about to end, and the relay beside it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Going {
    /// In milliseconds: nodes come again spread over so long.
    #[prost(uint32, tag = "1")]
    pub spread: u32,
}

/// What this node may use, in place of what was named before.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Relays {
    #[prost(message, repeated, tag = "1")]
    pub relays: Vec<Relay>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Relay {
    #[prost(string, repeated, tag = "1")]
    pub uris: Vec<String>,
    #[prost(string, tag = "2")]
    pub username: String,
    #[prost(string, tag = "3")]
    pub password: String,
    #[prost(uint32, tag = "4")]
    pub seconds: u32,
    #[prost(uint32, optional, tag = "5")]
    pub weight: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub exchange: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub body: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Undelivered {
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub exchange: Vec<u8>,
    #[prost(enumeration = "Cause", tag = "3")]
    pub cause: i32,
    #[prost(string, tag = "4")]
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Cause {
    Unspecified = 0,
    Offline = 1,
    RateLimited = 2,
    ReceiverBusy = 3,
    Invalid = 4,
    Unavailable = 5,
}

/// Registers over a stream that leads to the service; what is put into `messages` is sent.
pub async fn register<S>(
    stream: S,
    messages: mpsc::Receiver<NodeMessage>,
) -> Result<Streaming<RendezvousMessage>, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let channel = channel_over(stream).await?;
    let mut client = Grpc::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/keynet.rendezvous.v1.Rendezvous/Register");
    let request = Request::new(ReceiverStream::new(messages));
    Ok(client.streaming(request, path, ProstCodec::default()).await?.into_inner())
}

/// A channel for this one stream: when it breaks, there is no other.
async fn channel_over<S>(stream: S) -> Result<Channel, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        async move { stream }
    });
    // the name goes into :authority and nowhere else
    let endpoint = Endpoint::from_static("http://rendezvous.keynet");
    endpoint.connect_with_connector(connector).await.map_err(|error| Status::unavailable(error.to_string()))
}

/// A Signal with the largest body (rendezvous.proto) and what is around it.
const LARGEST_MESSAGE: usize = 48 << 10;
/// rendezvous.proto.
pub const LARGEST_BODY: usize = 40 << 10;
