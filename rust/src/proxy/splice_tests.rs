use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use tokio::io::{duplex, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// A splice under way: the program's socket, the far end of the link, and how it will end.
async fn running(link_buffer: usize, early: &[u8], size: usize) -> (TcpStream, DuplexStream, Ending) {
    let (program, socket) = tcp_pair().await;
    let (mut link, far) = duplex(link_buffer);
    let (early, counters) = (early.to_vec(), Arc::new(Counters::default()));
    let counted = counters.clone();
    let task = tokio::spawn(async move {
        let local = LocalStream::tcp(socket);
        let outcome = splice(&local, &mut link, early, &counted, size, |_| None).await;
        if matches!(outcome, Outcome::Finished) {
            local.finish();
        }
        outcome
    });
    (program, far, Ending { task, counters })
}

struct Ending {
    task: tokio::task::JoinHandle<Outcome>,
    counters: Arc<Counters>,
}

impl Ending {
    async fn outcome(self) -> Outcome {
        timeout(LIMIT, self.task).await.expect("an end").unwrap()
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_keep_their_order_through_buffers_of_any_size() {
    for (link_buffer, size) in [(1, 1), (7, 64), (64, 7), (4096, 100_000), (100_000, 4096)] {
        let length = if link_buffer == 1 { 2_000 } else { 300_000 };
        let (mut program, mut far, ending) = running(link_buffer, b"early", size).await;
        let (up, down) = (pattern(length), pattern(length + 5));
        let (mut program_reads, mut program_writes) = program.split();
        let (mut far_reads, mut far_writes) = tokio::io::split(&mut far);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let all = async {
            tokio::join!(
                async {
                    program_writes.write_all(&up).await.unwrap();
                    program_writes.shutdown().await.unwrap();
                },
                async {
                    far_writes.write_all(&down).await.unwrap();
                    far_writes.shutdown().await.unwrap();
                },
                async { far_reads.read_to_end(&mut got_up).await.unwrap() },
                async { program_reads.read_to_end(&mut got_down).await.unwrap() },
            )
        };
        timeout(LIMIT, all).await.expect("everything arrives");
        assert!(got_up == [b"early", &up[..]].concat() && got_down == down, "{link_buffer} {size}");
        assert_eq!(ending.counters.out.load(Ordering::Relaxed), 5 + length as u64);
        assert_eq!(ending.counters.into.load(Ordering::Relaxed), 5 + length as u64);
        assert!(matches!(ending.outcome().await, Outcome::Finished));
    }
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let (mut program, mut far, ending) = running(64, b"", 64).await;
    program.shutdown().await.unwrap();
    assert_eq!(timeout(LIMIT, far.read_u8()).await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    for byte in 0..200 {
        far.write_u8(byte).await.unwrap();
        assert_eq!(timeout(LIMIT, program.read_u8()).await.unwrap().unwrap(), byte);
    }
    assert!(!ending.task.is_finished());
    far.shutdown().await.unwrap();
    assert!(matches!(ending.outcome().await, Outcome::Finished));
}

#[tokio::test]
async fn a_reset_program_breaks_the_local_side() {
    let (program, _far, ending) = running(64, b"", 64).await;
    program.set_zero_linger().unwrap();
    drop(program);
    assert!(matches!(ending.outcome().await, Outcome::Local(_)));
}

/// As HTTP/2 clients close: they have ended their direction, and do not read what the server still says.
#[tokio::test]
async fn a_program_that_ends_in_order_and_reads_no_more_has_not_broken_anything() {
    let (mut program, mut far, ending) = running(64, b"", 64).await;
    program.write_all(b"the last word").await.unwrap();
    program.shutdown().await.unwrap();
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"the last word");
    drop(program);
    while far.write_all(b"nobody reads this").await.is_ok() {}
    assert!(matches!(ending.outcome().await, Outcome::LocalClosed));
}

#[tokio::test]
async fn a_link_that_ended_in_order_and_takes_no_more_has_not_broken_anything() {
    let (mut program, mut far, ending) = running(16, b"", 64).await;
    far.shutdown().await.unwrap();
    assert_eq!(timeout(LIMIT, program.read(&mut [0; 9])).await.unwrap().unwrap(), 0);
    drop(far);
    while program.write_all(b"nobody takes this").await.is_ok() && !ending.task.is_finished() {}
    assert!(matches!(ending.outcome().await, Outcome::LinkClosed(_)));
}

#[tokio::test]
async fn a_reset_program_is_noticed_while_the_link_takes_nothing() {
    let (mut program, _far, ending) = running(16, b"", 64).await;
    program.write_all(&pattern(100_000)).await.unwrap();
    tokio::task::yield_now().await;
    program.set_zero_linger().unwrap();
    drop(program);
    assert!(matches!(ending.outcome().await, Outcome::Local(_)));
}

/// Fills the link until nothing more goes through.
async fn fill(program: &mut TcpStream, data: &[u8]) -> usize {
    let mut written = 0;
    while written < data.len() {
        match timeout(Duration::from_millis(300), program.write(&data[written..])).await {
            Ok(count) => written += count.unwrap(),
            Err(_) => break,
        }
    }
    written
}

#[tokio::test]
async fn a_program_that_closes_right_behind_its_last_byte_loses_nothing() {
    let (mut program, mut far, ending) = running(64, b"early", 64).await;
    // no more than this machine takes at once: what a program's own system still holds when an answer finds nobody, it throws away
    let data = pattern(50_000);
    program.write_all(&data).await.unwrap();
    drop(program);
    // what the other side says meanwhile finds nobody, and the program's machine says so with a reset
    let (mut reads, mut writes) = tokio::io::split(&mut far);
    let answer = pattern(10_000);
    let mut got = Vec::new();
    let both = async { tokio::join!(writes.write_all(&answer), reads.read_to_end(&mut got)) };
    let (_, read) = timeout(LIMIT, both).await.expect("an end");
    read.unwrap();
    assert!(got == [b"early", &data[..]].concat(), "{} of {}", got.len(), data.len());
    assert!(matches!(ending.outcome().await, Outcome::LocalClosed));
}

#[tokio::test]
async fn what_a_program_said_before_it_was_reset_arrives_and_no_end_follows() {
    let (mut program, mut far, ending) = running(64, b"", 64).await;
    let data = pattern(300_000);
    let written = fill(&mut program, &data).await;
    program.set_zero_linger().unwrap();
    drop(program);
    let mut got = Vec::new();
    let read = timeout(LIMIT, far.read_to_end(&mut got)).await.expect("the splice ends");
    read.unwrap();
    // the link of a splice that broke is dropped by the test; its caller resets it
    assert!(matches!(ending.outcome().await, Outcome::Local(_)));
    assert!(got == data[..got.len()] && got.len() <= written);
}

#[tokio::test]
async fn what_came_before_the_link_broke_reaches_the_program() {
    let (mut program, socket) = tcp_pair().await;
    let (mut link, mut far) = duplex(64);
    let task = tokio::spawn(async move {
        let local = LocalStream::tcp(socket);
        let outcome = splice(&local, &mut link, Vec::new(), &Counters::default(), 64, |_| None).await;
        local.finish();
        outcome
    });
    far.write_all(b"the last words").await.unwrap();
    drop(far);
    // writing to what is gone fails, and reading goes on
    program.write_all(&pattern(1_000)).await.unwrap();
    let mut got = Vec::new();
    timeout(LIMIT, program.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, b"the last words");
    assert!(matches!(timeout(LIMIT, task).await.unwrap().unwrap(), Outcome::LinkClosed(_) | Outcome::Finished));
}

#[tokio::test]
async fn a_broken_link_is_noticed_while_the_program_reads_nothing() {
    let (_program, socket) = tcp_pair().await;
    let (mut link, mut far) = duplex(1 << 20);
    let broken = Arc::new(AtomicBool::new(false));
    let looked = broken.clone();
    let task = tokio::spawn(async move {
        let failure = |_: &DuplexStream| looked.load(Ordering::Relaxed).then(|| io::ErrorKind::TimedOut.into());
        let local = LocalStream::tcp(socket);
        splice(&local, &mut link, Vec::new(), &Counters::default(), 1024, failure).await
    });
    // Until nothing more goes through: the program's socket is full, and so is what lies behind it.
    let data = pattern(1 << 20);
    while let Ok(result) = timeout(Duration::from_millis(300), far.write_all(&data)).await {
        result.unwrap();
    }
    broken.store(true, Ordering::Relaxed);
    assert!(matches!(timeout(LIMIT, task).await.unwrap().unwrap(), Outcome::Link(_)));
}

#[tokio::test]
async fn an_idle_direction_holds_no_buffer() {
    let (mut program, socket) = tcp_pair().await;
    let (mut link, mut far) = duplex(64);
    let local = LocalStream::tcp(socket);
    let mut flow = Flow::new(Vec::new(), 128 << 10);
    let moved = AtomicU64::new(0);
    for _ in 0..3 {
        program.write_all(b"hello").await.unwrap();
        let arrived = async {
            poll_fn(|cx| {
                let mut here = Here { local: &local, aborted: false, ended: None };
                let polled = flow.poll(cx, &mut here, &mut There(&mut link), &moved);
                assert!(polled.is_pending() && flow.buffer.bytes.is_empty());
                if moved.load(Ordering::Relaxed).is_multiple_of(5) && moved.load(Ordering::Relaxed) > 0 {
                    return Poll::Ready(());
                }
                Poll::Pending
            })
            .await;
        };
        timeout(LIMIT, arrived).await.unwrap();
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        moved.store(0, Ordering::Relaxed);
    }
    SPARE.with_borrow(|spare| assert!(spare.0.len() <= MAX_SPARE));
}

#[tokio::test]
#[allow(clippy::print_stdout)]
#[ignore = "a measurement: cargo test --release --lib splice -- --ignored --nocapture"]
async fn how_fast_bytes_are_copied() {
    let (program, socket) = tcp_pair().await;
    let (mut far, link) = tcp_pair().await;
    let splicing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (socket, link) = (socket.into_std().unwrap(), link.into_std().unwrap());
        runtime.block_on(async {
            let local = LocalStream::tcp(TcpStream::from_std(socket).unwrap());
            let mut link = TcpStream::from_std(link).unwrap();
            let outcome =
                splice(&local, &mut link, Vec::new(), &Counters::default(), 128 << 10, |_: &TcpStream| None).await;
            local.finish();
            outcome
        })
    });
    let program = program.into_std().unwrap();
    program.set_nonblocking(false).unwrap();
    let total: usize = 4 << 30;
    let start = std::time::Instant::now();
    let writing = std::thread::spawn(move || {
        let (block, mut left) = (vec![7; 1 << 20], total);
        while left > 0 {
            std::io::Write::write_all(&mut &program, &block).unwrap();
            left -= block.len();
        }
        drop(program);
    });
    let mut buffer = vec![0; 1 << 20];
    let mut got = 0;
    while got < total {
        got += far.read(&mut buffer).await.unwrap();
    }
    let took = start.elapsed();
    println!("{:.1} Gbit/s through a splice between two TCP sockets", total as f64 * 8.0 / took.as_secs_f64() / 1e9);
    far.shutdown().await.unwrap();
    writing.join().unwrap();
    assert!(matches!(splicing.join().unwrap(), Outcome::Finished));
}
