//! Identity files: mode 0600, never seen half written, never read when others could have.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result, Stage};

/// Whether anything is there, a dangling symbolic link included.
pub(super) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(unusable(path, format!("cannot be looked at: {e}"))),
    }
}

/// The text of an identity file. For its errors see [`super::Identity::load`].
pub(super) fn read(path: &Path) -> Result<Zeroizing<String>> {
    let seen = fs::symlink_metadata(path).map_err(|e| unusable(path, format!("cannot be read: {e}")))?;
    check_plain(path, &seen)?;
    check_private(path, &seen)?;
    let file = File::open(path).map_err(|e| unusable(path, format!("cannot be opened: {e}")))?;
    let opened = file.metadata().map_err(|e| unusable(path, format!("cannot be looked at: {e}")))?;
    if !is_same_file(&seen, &opened) {
        return Err(unusable(path, "was replaced while it was opened: try again"));
    }
    check_private(path, &opened)?;
    // all the room at once: a buffer that grows leaves copies of the key behind
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| unusable(path, format!("cannot be read: {e}")))?;
    match bytes.len() as u64 {
        0 => Err(unusable(path, "is empty")),
        1..=MAX_FILE => match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Zeroizing::new(text.to_owned())),
            Err(_) => Err(unusable(path, "is not a PEM file")),
        },
        _ => Err(unusable(path, format!("is larger than {MAX_FILE} bytes"))),
    }
}

/// Writes the file, whatever plain file was there.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    if let Ok(seen) = fs::symlink_metadata(path) {
        check_plain(path, &seen)?;
    }
    let temporary = Temporary::write(path, text)?;
    fs::rename(&temporary.0, path).and_then(|()| sync_folder(path)).map_err(|e| unwritable(path, &e))
}

/// Writes the file unless there is one. Either way a whole file is there afterwards.
pub(super) fn create(path: &Path, text: &str) -> Result<()> {
    let temporary = Temporary::write(path, text)?;
    // a link, unlike a rename, does not replace what is there
    match fs::hard_link(&temporary.0, path) {
        Ok(()) => sync_folder(path).map_err(|e| unwritable(path, &e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(unwritable(path, &e)),
    }
}

/// A written file beside the wanted one, removed when dropped (after a rename there is nothing left to remove).
struct Temporary(PathBuf);

impl Temporary {
    fn write(beside: &Path, text: &str) -> Result<Self> {
        let (temporary, mut file) = Self::open(beside).map_err(|e| unwritable(beside, &e))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| unwritable(beside, &e))?;
        Ok(temporary)
    }

    fn open(beside: &Path) -> io::Result<(Self, File)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            beside.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "not the name of a file"))?;
        // names left behind by a killed process with our id: few
        for _ in 0..64 {
            let mut temporary = OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let path = beside.with_file_name(temporary);
            match private_options().open(&path) {
                Ok(file) => return Ok((Self(path), file)),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "remove the .tmp files beside it"))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn check_plain(path: &Path, seen: &Metadata) -> Result<()> {
    let kind = seen.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map(|target| format!(" to {}", target.display())).unwrap_or_default();
        return Err(unusable(path, format!("is a symbolic link{target}: name the file itself")));
    }
    if kind.is_dir() {
        return Err(unusable(path, "is a directory"));
    }
    if !kind.is_file() {
        return Err(unusable(path, "is not a plain file"));
    }
    Ok(())
}

#[cfg(unix)]
fn check_private(path: &Path, seen: &Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let mode = seen.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    let what = format!("{path} has mode {mode:04o}, so others than its owner have access; run: chmod 600 {path}");
    Err(Error::new(Reason::IdentityExposed, Stage::Setup, what))
}

#[cfg(unix)]
fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(unix)]
fn private_options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Elsewhere the folder's access list decides who may read; std cannot ask it.
#[cfg(not(unix))]
fn check_private(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn is_same_file(_: &Metadata, _: &Metadata) -> bool {
    true
}

#[cfg(not(unix))]
fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    options
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

fn unusable(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Reason::IdentityInvalid, Stage::Setup, format!("{} {what}", path.display()))
}

fn unwritable(path: &Path, e: &io::Error) -> Error {
    unusable(path, format!("cannot be written: {e}"))
}

/// A chain of 16 certificates of keynet's own take 8 KiB as PEM; of the largest that are taken, 45 KiB.
const MAX_FILE: u64 = 64 << 10;

#[cfg(all(test, unix))]
mod tests {
    use super::super::Identity;
    use super::*;
    use std::os::unix::fs::{symlink, PermissionsExt};
    use std::time::SystemTime;

    /// A folder of one test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("keynet-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            set_mode(&path, 0o600);
            path
        }

        fn names(&self) -> Vec<OsString> {
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn identity() -> Identity {
        Identity::generate(SystemTime::now()).unwrap()
    }

    #[test]
    fn saved_with_0600_and_loaded_again() {
        let folder = Folder::new("save");
        let path = folder.0.join("node.pem");
        let first = identity();
        first.save(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(Identity::load(&path).unwrap().node_id(), first.node_id());

        let second = first.rotate(SystemTime::now()).unwrap();
        set_mode(&path, 0o644);
        second.save(&path).unwrap();
        assert_eq!(mode(&path), 0o600, "a file that was open is closed by saving");
        assert_eq!(Identity::load(&path).unwrap().node_ids(), vec![second.node_id(), first.node_id()]);
        assert_eq!(folder.names(), ["node.pem"], "nothing is left beside it");
    }

    #[test]
    fn what_others_can_read_is_refused_and_the_message_mends_it() {
        let folder = Folder::new("exposed");
        let path = folder.file("node.pem", identity().to_pem().as_bytes());
        for open in [0o640, 0o604, 0o620, 0o601, 0o644, 0o666] {
            set_mode(&path, open);
            let error = Identity::load(&path).unwrap_err();
            assert_eq!(error.reason, Reason::IdentityExposed, "{open:o}");
            assert!(error.detail.contains(&format!("chmod 600 {}", path.display())), "{error}");
            assert_eq!(Identity::load_or_create(&path, SystemTime::now()).unwrap_err().reason, Reason::IdentityExposed);
        }
        set_mode(&path, 0o400);
        Identity::load(&path).unwrap();
    }

    #[test]
    fn what_is_not_an_identity_file_is_refused_by_name() {
        let folder = Folder::new("kinds");
        let refused = |path: &Path, part: &str| {
            let error = Identity::load(path).unwrap_err();
            assert_eq!(error.reason, Reason::IdentityInvalid, "{error}");
            assert!(error.detail.contains(part) && error.detail.contains(&path.display().to_string()), "{error}");
        };
        let good = identity().to_pem();
        let real = folder.file("real.pem", good.as_bytes());
        let link = folder.0.join("link.pem");
        symlink(&real, &link).unwrap();
        refused(&link, "symbolic link");
        assert!(identity().save(&link).unwrap_err().detail.contains("symbolic link"));
        let dangling = folder.0.join("dangling.pem");
        symlink("nowhere", &dangling).unwrap();
        assert!(Identity::load_or_create(&dangling, SystemTime::now()).is_err());

        refused(&folder.0, "is a directory");
        assert!(identity().save(&folder.0).is_err());
        refused(Path::new("/dev/null"), "not a plain file");
        refused(&folder.0.join("missing.pem"), "cannot be read");
        refused(&folder.file("empty.pem", b""), "is empty");
        refused(&folder.file("garbage.pem", &[0xff; 300]), "not a PEM");
        refused(&folder.file("text.pem", b"hello"), "no PRIVATE KEY");
        refused(&folder.file("large.pem", &[b'\n'; MAX_FILE as usize + 1]), "larger");
        assert!(identity()
            .save(&folder.0.join("no/such/folder.pem"))
            .unwrap_err()
            .detail
            .contains("cannot be written"));
        assert!(Identity::load_or_create(Path::new("/"), SystemTime::now()).is_err());
    }

    #[test]
    fn those_who_create_at_once_end_with_one_identity() {
        let folder = Folder::new("race");
        for round in 0..20 {
            let path = folder.0.join(format!("{round}.pem"));
            let start = std::sync::Barrier::new(4);
            let nodes: Vec<_> = std::thread::scope(|scope| {
                let create = || {
                    start.wait();
                    Identity::load_or_create(&path, SystemTime::now()).unwrap().node_id()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(nodes.iter().all(|node| *node == nodes[0]), "{nodes:?}");
            assert_eq!(mode(&path), 0o600);
        }
        assert_eq!(folder.names().len(), 20, "nothing is left beside them");
    }
}
