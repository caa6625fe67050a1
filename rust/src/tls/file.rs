//! Identity files: mode 0600, never seen half written, never read when others could have read or placed them.
//!
//! A file may also be handed to this process by who runs the machine (a secret of Kubernetes, a credential of systemd): it
//! belongs to root then, its group may read it, and the path is a chain of symbolic links.

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
    let seen = fs::metadata(path).map_err(|e| unusable(path, absent(path, &e)))?;
    check_plain(path, &seen)?;
    check_private(path, &seen)?;
    check_folders(path)?;
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

/// Writes the file, whatever plain file was there; behind a symbolic link, the file that it leads to.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    check_folders(path)?;
    let is_link = fs::symlink_metadata(path).is_ok_and(|seen| seen.file_type().is_symlink());
    let target = if is_link { fs::canonicalize(path) } else { Ok(path.to_owned()) };
    let target = target.map_err(|e| unusable(path, absent(path, &e)))?;
    if let Ok(seen) = fs::symlink_metadata(&target) {
        check_plain(path, &seen)?;
    }
    let temporary = Temporary::write(&target, text)?;
    fs::rename(&temporary.0, &target).and_then(|()| sync_folder(&target)).map_err(|e| unwritable(path, &e))
}

/// Writes the file unless there is one. Either way a whole file is there afterwards.
pub(super) fn create(path: &Path, text: &str) -> Result<()> {
    check_folders(path)?;
    let temporary = Temporary::write(path, text)?;
    // a link, unlike a rename, does not replace what is there
    let made = fs::hard_link(&temporary.0, path).or_else(|e| match e.kind() {
        ErrorKind::AlreadyExists => Err(e),
        // there are file systems without links (exFAT, some by FUSE and SMB)
        _ => create_in_place(path, text),
    });
    match made {
        Ok(()) => sync_folder(path).map_err(|e| unwritable(path, &e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(unwritable(path, &e)),
    }
}

/// The file under its own name at once. Who looks in between finds it empty, and is told so.
fn create_in_place(path: &Path, text: &str) -> io::Result<()> {
    let mut file = private_options().open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
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
    if kind.is_dir() {
        return Err(unusable(path, "is a directory"));
    }
    if !kind.is_file() {
        return Err(unusable(path, "is not a plain file"));
    }
    Ok(())
}

/// Why the file behind a path cannot be had.
fn absent(path: &Path, e: &io::Error) -> String {
    match fs::read_link(path) {
        Ok(target) => format!("is a symbolic link to {}, which cannot be read: {e}", target.display()),
        Err(_) => format!("cannot be read: {e}"),
    }
}

/// The file is this user's and nobody else has any access to it, or it is root's and its group may read it at most.
#[cfg(unix)]
fn check_private(path: &Path, seen: &Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (mode, owner, me) = (seen.mode() & 0o7777, seen.uid(), user());
    let path = path.display();
    if owner != me && owner != ROOT {
        let what = format!("{path} belongs to user {owner}, who can change it; it must be user {me}'s or root's");
        return Err(exposed(what));
    }
    // root's own files are handed out read-only when they are meant for a group
    let handed_out = owner == ROOT && (me != ROOT || mode & 0o200 == 0);
    let allowed = if handed_out { 0o740 } else { 0o700 };
    if mode & 0o777 & !allowed == 0 {
        return Ok(());
    }
    Err(exposed(format!("{path} has mode {mode:04o}, so others than its owner have access; run: chmod 600 {path}")))
}

/// Nobody but this user and root can put another file in this one's place: neither where the path says nor where it leads.
#[cfg(unix)]
fn check_folders(path: &Path) -> Result<()> {
    let named = folder_of(path).to_owned();
    let behind = fs::canonicalize(path).ok().map(|file| folder_of(&file).to_owned());
    for folder in [Some(named), behind].into_iter().flatten() {
        // a folder that cannot be looked at has its error when the file is opened
        if let Ok(seen) = fs::metadata(&folder) {
            check_folder(path, &folder, &seen)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn check_folder(path: &Path, folder: &Path, seen: &Metadata) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let (mode, owner, me) = (seen.mode() & 0o7777, seen.uid(), user());
    let (path, folder) = (path.display(), folder.display());
    if owner != me && owner != ROOT {
        let what = format!("{path} lies in {folder}, which belongs to user {owner}, who can replace the file");
        return Err(exposed(what));
    }
    // in a sticky folder, as /tmp, only its owner can replace a file; a group with the user's own number has no other members
    let own_group = seen.gid() == owner;
    let writers = if own_group { 0o002 } else { 0o022 };
    if mode & 0o1000 != 0 || mode & writers == 0 {
        return Ok(());
    }
    let what = format!("{path} lies in {folder} with mode {mode:04o}, so others can replace the file");
    Err(exposed(format!("{what}; run: chmod go-w {folder}")))
}

#[cfg(unix)]
fn exposed(what: String) -> Error {
    Error::new(Reason::IdentityExposed, Stage::Setup, what)
}

#[cfg(unix)]
const ROOT: u32 = 0;

/// The user that this process acts for.
#[cfg(unix)]
#[allow(unsafe_code)]
fn user() -> u32 {
    // SAFETY: geteuid(2) takes nothing and always succeeds
    unsafe { libc::geteuid() }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
    match File::open(folder_of(path))?.sync_all() {
        // there are file systems that cannot write a folder out by itself
        Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Elsewhere the folder's access list decides who may read; std cannot ask it.
#[cfg(not(unix))]
fn check_private(_: &Path, _: &Metadata) -> Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn check_folders(_: &Path) -> Result<()> {
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
        let dangling = folder.0.join("dangling.pem");
        symlink("nowhere", &dangling).unwrap();
        refused(&dangling, "symbolic link to nowhere");
        assert!(identity().save(&dangling).unwrap_err().detail.contains("symbolic link to nowhere"));
        assert!(Identity::load_or_create(&dangling, SystemTime::now()).is_err());
        let circle = folder.0.join("circle.pem");
        symlink(&circle, &circle).unwrap();
        refused(&circle, "symbolic link");

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
    fn a_symbolic_link_is_followed_and_stays_one() {
        let folder = Folder::new("link");
        let (first, second) = (identity(), identity());
        // as Kubernetes lays out a secret: node.pem -> ..data/node.pem, ..data -> ..1
        fs::create_dir(folder.0.join("..1")).unwrap();
        let real = folder.file("..1/node.pem", first.to_pem().as_bytes());
        symlink("..1", folder.0.join("..data")).unwrap();
        let link = folder.0.join("node.pem");
        symlink("..data/node.pem", &link).unwrap();
        assert_eq!(Identity::load(&link).unwrap().node_id(), first.node_id());
        assert_eq!(Identity::load_or_create(&link, SystemTime::now()).unwrap().node_id(), first.node_id());
        second.save(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
        assert_eq!(Identity::load(&real).unwrap().node_id(), second.node_id());
        set_mode(&real, 0o644);
        assert_eq!(Identity::load(&link).unwrap_err().reason, Reason::IdentityExposed);
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused_unless_it_is_sticky() {
        let folder = Folder::new("folders");
        let path = folder.file("node.pem", identity().to_pem().as_bytes());
        for (mode, fine) in [(0o777, false), (0o757, false), (0o1777, true), (0o755, true), (0o700, true)] {
            set_mode(&folder.0, mode);
            match Identity::load(&path) {
                Ok(_) => assert!(fine, "{mode:o}"),
                Err(error) => {
                    assert!(!fine && error.reason == Reason::IdentityExposed, "{mode:o}: {error}");
                    assert!(error.detail.contains("chmod go-w"), "{error}");
                }
            }
            let new = folder.0.join(format!("{mode:o}.pem"));
            assert_eq!(Identity::load_or_create(&new, SystemTime::now()).is_ok(), fine, "{mode:o}");
            assert_eq!(new.exists(), fine, "nothing is made where others could replace it");
        }
    }

    #[test]
    fn the_owner_of_a_file_is_this_user_or_root() {
        if user() != ROOT {
            return; // only root can give files away; the Python tests try it as another user, too
        }
        let folder = Folder::new("owner");
        let path = folder.file("node.pem", identity().to_pem().as_bytes());
        std::os::unix::fs::chown(&path, Some(54_321), None).unwrap();
        let error = Identity::load(&path).unwrap_err();
        assert!(error.reason == Reason::IdentityExposed && error.detail.contains("belongs to user 54321"), "{error}");
        std::os::unix::fs::chown(&path, Some(ROOT), None).unwrap();
        std::os::unix::fs::chown(&folder.0, Some(54_321), None).unwrap();
        let error = Identity::load(&path).unwrap_err();
        assert!(error.reason == Reason::IdentityExposed && error.detail.contains("can replace the file"), "{error}");
        std::os::unix::fs::chown(&folder.0, Some(ROOT), None).unwrap();
        set_mode(&path, 0o440);
        Identity::load(&path).unwrap();
        set_mode(&path, 0o444);
        assert_eq!(Identity::load(&path).unwrap_err().reason, Reason::IdentityExposed);
    }

    #[test]
    fn without_hard_links_a_file_is_made_once() {
        let folder = Folder::new("links");
        let path = folder.0.join("node.pem");
        create_in_place(&path, "first").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode(&path)), ("first", 0o600));
        assert_eq!(create_in_place(&path, "second").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
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
