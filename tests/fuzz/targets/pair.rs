//! Two endpoints and a path that the fuzzer schedules: it decides for each datagram whether and when it arrives, how often, and
//! in what state; and when time passes, and what the programs do.

use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};
use keynet::utp::End;

use super::input::Input;
use crate::support::link::{Link, LinkConfig};
use crate::support::pair::{App, Pair, A, B};

/// What was read is a prefix of what was written, at each read; once the path is good again both ends end in bounded time, in an
/// allowed way, and unless something was done that may break a connection, all arrived.
pub fn adversarial_path(data: &[u8]) {
    let mut input = Input::new(data);
    let mut game = Game::new(&mut input);
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        game.operate(&mut input);
    }
    game.heal();
    game.judge();
}

struct Game {
    pair: Pair,
    /// Aborted or let go of, or given wrong bytes.
    broken: bool,
    damaged: bool,
    /// Time that passed while nothing arrived by itself.
    held: Duration,
}

impl Game {
    fn new(input: &mut Input<'_>) -> Self {
        let window = input.pick(&[4 << 10, 64 << 10, 1 << 20]);
        let utp = UtpConfig {
            controller: input.pick(&CONTROLLERS),
            initial_window: window,
            receive_buffer: window,
            send_buffer: input.pick(&[2 << 10, 64 << 10, 1 << 20]),
            ..UtpConfig::default()
        };
        // nothing arrives by itself
        let held = LinkConfig { delay: FOR_EVER, ..LinkConfig::default() };
        let mut pair = Pair::symmetric(u64::from(input.u8()), &utp, held);
        for n in 0..2 {
            pair.add_path(n, LinkConfig { delay: FOR_EVER, ..LinkConfig::default() });
        }
        pair.max_segments = input.pick(&[1, 44]);
        pair.hosts[B].template = App { writes: 2, expects: 1, finish: false, ..App::default() };
        pair.connect(A, &utp, App { writes: 1, expects: 2, finish: false, ..App::default() });
        Self { pair, broken: false, damaged: false, held: Duration::ZERO }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0..=2 => self.deliver(input, false),
            3 => self.deliver(input, true),
            4 => drop(self.intercept(input)),
            5 | 6 => {
                for _ in 0..self.pair.under_way().min(MAX_BURST) {
                    if let Some((host, datagram)) = self.pair.intercept(0) {
                        self.pair.arrive(host, &datagram);
                    }
                }
            }
            7 => self.pass(Duration::from_millis(u64::from(input.pick(&[1u16, 3, 10, 40, 200, 1_000, 3_000, 20_000])))),
            8 => self.pass(Duration::from_micros(u64::from(input.u16()))),
            9 => self.damage(input),
            _ => self.program(input),
        }
    }

    fn intercept(&mut self, input: &mut Input<'_>) -> Option<(usize, Vec<u8>)> {
        let n = usize::from(input.u8()) % self.pair.under_way().max(1);
        self.pair.intercept(n)
    }

    fn deliver(&mut self, input: &mut Input<'_>, twice: bool) {
        let Some((host, datagram)) = self.intercept(input) else { return };
        self.pair.arrive(host, &datagram);
        if twice {
            self.pair.arrive(host, &datagram);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.held += time;
        self.pair.run_for(time);
    }

    /// uTP has no checksum of its own, so the bytes may be wrong from here on; everything else holds.
    fn damage(&mut self, input: &mut Input<'_>) {
        let Some((host, mut datagram)) = self.intercept(input) else { return };
        self.damaged = true;
        self.pair.hosts[B].template.trusting = true;
        self.pair.hosts.iter_mut().flat_map(|host| host.apps.values_mut()).for_each(|app| app.trusting = true);
        let at = usize::from(input.u8()) % datagram.len();
        match input.u8() {
            0 => datagram.truncate(at),
            flip => datagram[at] ^= flip,
        }
        self.pair.arrive(host, &datagram);
    }

    fn program(&mut self, input: &mut Input<'_>) {
        let host = input.pick(&[A, B]);
        let Some(&handle) = self.pair.hosts[host].handles.first() else { return };
        let now = self.pair.local_now(host);
        match input.u8() % 16 {
            0..=5 => {
                let app = self.pair.app(host, 0);
                if !app.finish {
                    app.to_write += u64::from(input.u8()) * u64::from(input.pick(&[1u16, 50, 1_000]));
                }
            }
            6 | 7 => self.pair.app(host, 0).paused ^= true,
            8 => self.pair.app(host, 0).gulp = 1 + usize::from(input.u16()),
            9..=11 => self.pair.app(host, 0).finish = true,
            12 if input.u8() & 1 == 1 => match input.u8() {
                how @ 0..=191 => self.pair.move_to(host, usize::from(how % 3), how & 64 == 0),
                _ => self.pair.path_back(host),
            },
            12 | 13 => {
                let kind = input.pick(&CONTROLLERS);
                if let Some(connection) = self.pair.hosts[host].connections.get_mut(&handle) {
                    connection.set_controller(kind);
                }
            }
            last => {
                self.broken = true;
                self.pair.app(host, 0).paused = true;
                if let Some(connection) = self.pair.hosts[host].connections.get_mut(&handle) {
                    if last == 14 {
                        connection.abort();
                    } else {
                        connection.detach(now);
                    }
                }
            }
        }
        self.pair.pump(host);
    }

    /// What is under way arrives, in order, and from here on the path is good and the programs read and end.
    fn heal(&mut self) {
        let Self { pair, .. } = self;
        pair.links = [1, 2].map(|seed| Link::new(LinkConfig::default(), seed));
        for path in &mut pair.detours {
            *path = [1, 2].map(|seed| Link::new(LinkConfig::default(), seed));
        }
        pair.hosts[B].template.finish = true;
        for host in [A, B] {
            for app in pair.hosts[host].apps.values_mut() {
                app.finish = true;
                app.paused = false;
            }
        }
        while let Some((host, datagram)) = pair.intercept(0) {
            pair.arrive(host, &datagram);
            if pair.datagrams > MAX_DATAGRAMS {
                break;
            }
        }
        pair.pump(A);
        pair.pump(B);
    }

    fn judge(&mut self) {
        let Self { pair, broken, damaged, held } = self;
        pair.wind_up(*damaged);
        if *broken || *damaged || *held > Duration::from_secs(10) {
            return;
        }
        assert!(!pair.hosts[B].handles.is_empty(), "it was never accepted");
        for host in [A, B] {
            assert_eq!(pair.end(host, 0), Some(End::Finished), "host {host}");
        }
        for (from, to) in [(A, B), (B, A)] {
            let written = pair.app(from, 0).written;
            assert_eq!(written, pair.app(from, 0).to_write);
            assert_eq!(pair.app(to, 0).read, written, "lost from {from} to {to}");
        }
    }
}

const CONTROLLERS: [ControllerKind; 3] = [ControllerKind::Cubic, ControllerKind::Bbr, ControllerKind::Ledbat];
/// Longer than any case.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);
/// More would only make an input slow.
const MAX_OPERATIONS: usize = 300;
const MAX_BURST: usize = 64;
const MAX_DATAGRAMS: u64 = 20_000;
