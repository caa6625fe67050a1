//! Bridges TCP and raw uTP (no TLS), to talk to other uTP programs and to measure the transport alone.
//!
//! ```text
//! utp_bridge connect --tcp 127.0.0.1:0 --utp HOST:PORT   each TCP connection becomes a uTP connection to HOST:PORT
//! utp_bridge listen --utp 127.0.0.1:0 --tcp HOST:PORT    each uTP connection becomes a TCP connection to HOST:PORT
//! ```
//! Prints `ready tcp=ADDRESS utp=ADDRESS` and runs until it is killed. `--controller bbr|cubic|ledbat` chooses one. When a uTP
//! connection has ended it prints `ended in order`, or `ended` and why.

use std::io::Write;
use std::net::SocketAddr;

use keynet::config::{ControllerKind, UtpConfig};
use keynet::net::{Net, NetConfig, UtpStream};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let address = |name: &str| -> Result<SocketAddr, Failure> {
        Ok(value(name).ok_or_else(|| format!("{name} ADDRESS is missing"))?.parse()?)
    };
    let controller = match value("--controller").as_deref() {
        None => ControllerKind::default(),
        Some("cubic") => ControllerKind::Cubic,
        Some("ledbat") => ControllerKind::Ledbat,
        Some("bbr") => ControllerKind::Bbr,
        Some(other) => return Err(format!("no controller {other}").into()),
    };
    let utp = UtpConfig { controller, ..UtpConfig::default() };
    match arguments.first().map(String::as_str) {
        Some("connect") => connect(address("--tcp")?, address("--utp")?, utp).await,
        Some("listen") => listen(address("--utp")?, address("--tcp")?, utp).await,
        _ => Err("say connect or listen".into()),
    }
}

async fn connect(tcp: SocketAddr, utp: SocketAddr, config: UtpConfig) -> Result<(), Failure> {
    let any = if utp.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let (net, _incoming) = Net::bind(any.parse()?, NetConfig { utp: config.clone(), ..NetConfig::default() })?;
    let listener = TcpListener::bind(tcp).await?;
    println!("ready tcp={} utp={}", listener.local_addr()?, net.local_address());
    loop {
        let (tcp, _) = listener.accept().await?;
        let (net, config) = (net.clone(), config.clone());
        tokio::spawn(async move {
            match net.connect(utp, config).await {
                Ok(stream) => bridge(tcp, stream).await,
                Err(error) => eprintln!("{error}"),
            }
        });
    }
}

async fn listen(utp: SocketAddr, tcp: SocketAddr, config: UtpConfig) -> Result<(), Failure> {
    let (net, mut incoming) = Net::bind(utp, NetConfig { utp: config, ..NetConfig::default() })?;
    println!("ready tcp={tcp} utp={}", net.local_address());
    while let Some(stream) = incoming.accept().await {
        stream.trust();
        tokio::spawn(async move {
            match TcpStream::connect(tcp).await {
                Ok(tcp) => bridge(tcp, stream).await,
                Err(error) => eprintln!("{tcp}: {error}"),
            }
        });
    }
    Ok(())
}

async fn bridge(mut tcp: TcpStream, mut utp: UtpStream) {
    let _ = tcp.set_nodelay(true);
    if let Err(error) = tokio::io::copy_bidirectional_with_sizes(&mut tcp, &mut utp, 256 << 10, 256 << 10).await {
        eprintln!("{error}");
        utp.reset();
    }
    eprintln!("{:?}", utp.stats());
    utp.ended().await;
    match utp.failure() {
        None => say("ended in order"),
        Some(reason) => say(&format!("ended {reason}")),
    }
}

/// Whoever started this may have stopped listening.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
