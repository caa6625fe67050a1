//! coturn as a child process, one for each test, with ports of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use data_encoding::BASE64;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};

use keynet::addr::NodeId;
use keynet::relay::client::RelaySpec;
use keynet::relay::RelayUri;

use crate::machine::left_out;
use crate::support::LIMIT;

/// The only user, unless the configuration says otherwise.
pub const USER: &str = "alice";
pub const PASSWORD: &str = "wonderland";

pub struct Coturn {
    child: Child,
    folder: PathBuf,
    pub ip: IpAddr,
    pub port: u16,
    pub tls_port: u16,
    /// The key in its certificate.
    pub key: NodeId,
}

impl Coturn {
    /// Starts it on the loopback of one family, where it also relays; `None`, and says so, when this machine has no coturn.
    pub fn start(ip: IpAddr, more: &[&str]) -> Option<Self> {
        let user = format!("user={USER}:{PASSWORD}");
        let mut lines = vec!["lt-cred-mech", user.as_str()];
        lines.extend(more);
        Self::start_with(ip, &lines)
    }

    pub fn start_with(ip: IpAddr, lines: &[&str]) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let folder = env::temp_dir().join(format!(
            "keynet-coturn-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        fs::create_dir_all(&folder).unwrap();
        let key = certificate(&folder);
        // another process may take the ports in between: then it is tried again
        for _ in 0..5 {
            let (port, tls_port) = (free_port(ip), free_port(ip));
            fs::write(folder.join("turnserver.conf"), config(ip, port, tls_port, &folder, lines)).unwrap();
            let child = spawn(&folder);
            let mut coturn = Self { child, folder: folder.clone(), ip, port, tls_port, key };
            if coturn.answers() {
                return Some(coturn);
            }
        }
        panic!("coturn does not start: {}", fs::read_to_string(folder.join("out")).unwrap_or_default());
    }

    fn answers(&mut self) -> bool {
        let begun = Instant::now();
        let (plain, tls) = (SocketAddr::new(self.ip, self.port), SocketAddr::new(self.ip, self.tls_port));
        while begun.elapsed() < LIMIT && self.child.try_wait().unwrap().is_none() {
            if TcpStream::connect(plain).is_ok() && TcpStream::connect(tls).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// A way to it, with the user's credentials: `udp`, `tcp`, or `tls` with its key pinned.
    pub fn spec(&self, transport: &str) -> RelaySpec {
        let host = match self.ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let user = format!("{USER}:{PASSWORD}@{host}");
        match transport {
            "tls" => spec(&format!("turns:{user}:{}?key={}", self.tls_port, self.key)),
            _ => spec(&format!("turn:{user}:{}?transport={transport}", self.port)),
        }
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Another process, with the same ports, that knows nothing of what was.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.folder);
        assert!(self.answers(), "coturn does not start again: {}", self.log());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("out")).unwrap_or_default()
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub fn spec(uri: &str) -> RelaySpec {
    RelaySpec::new(uri.parse::<RelayUri>().unwrap())
}

pub fn v4() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

pub fn v6() -> IpAddr {
    Ipv6Addr::LOCALHOST.into()
}

static COUNT: AtomicU32 = AtomicU32::new(0);

fn is_installed() -> bool {
    let found = Command::new("turnserver").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok() {
        return true;
    }
    left_out("tests/relay", "turnserver is missing (coturn)");
    false
}

fn spawn(folder: &Path) -> Child {
    Command::new("turnserver")
        .arg("-c")
        .arg(folder.join("turnserver.conf"))
        .stdin(Stdio::null())
        .stdout(fs::File::create(folder.join("out")).unwrap())
        .stderr(fs::File::create(folder.join("err")).unwrap())
        .spawn()
        .unwrap()
}

fn free_port(ip: IpAddr) -> u16 {
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port()
}

fn config(ip: IpAddr, port: u16, tls_port: u16, folder: &Path, lines: &[&str]) -> String {
    let folder = folder.display();
    let mut text = format!(
        "listening-ip={ip}\nlistening-port={port}\ntls-listening-port={tls_port}\nrelay-ip={ip}\nrealm=test\n\
         cert={folder}/cert.pem\npkey={folder}/key.pem\nallow-loopback-peers\nno-cli\nno-dtls\n\
         log-file=stdout\npidfile={folder}/pid\nuserdb={folder}/db\nrelay-threads=1\nverbose\n"
    );
    for line in lines {
        text += line;
        text += "\n";
    }
    text
}

/// A certificate of its own for the folder's server, and the key in it.
fn certificate(folder: &Path) -> NodeId {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("key.pem"), old_pkcs8(&key)).unwrap();
    NodeId::from_public_key(key.public_key_raw().try_into().unwrap())
}

/// OpenSSL 3.0 reads Ed25519 keys without the public key in them only (PKCS #8 version 1, RFC 8410 section 7).
fn old_pkcs8(key: &KeyPair) -> String {
    let new = key.serialize_der();
    let old = [&[0x30, 0x2e, 0x02, 0x01, 0x00], &new[5..48]].concat();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(&old))
}
