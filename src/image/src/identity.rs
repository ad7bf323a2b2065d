//! What a copy of a system must not share with the one that it was made of: its machine id, and the host keys of its
//! SSH server. Both are made anew when it boots.

use std::io;

use cgrant_sys::Dir;
use rustix::fs::{FileType, Mode, mknodat};

use crate::path::TreePath;
use crate::place::{PlaceError, failed};

/// Makes a tree one that has not booted yet, as root of the storage namespace. `below`: the tree is the upper layer of an
/// overlay over this one; what is removed must be hidden there too.
///
/// # Errors
/// [`PlaceError`].
pub fn forget(tree: &Dir, below: Option<&Dir>) -> Result<(), PlaceError> {
    let path = TreePath::parse(b"etc").unwrap_or_default();
    let steps = || -> io::Result<()> {
        // Empty, not absent: then the container's manager says what it is, and no questions are asked at the first boot.
        if let Some(etc) = directory(tree, &["etc"])?
            && etc.exists("machine-id")?
        {
            etc.write_readable("machine-id", b"")?;
        }
        let seen = match below {
            Some(below) => {
                directory(below, &["etc", "ssh"])?.map_or_else(|| Ok(Vec::new()), |ssh| keys(&ssh))?
            }
            None => Vec::new(),
        };
        let Some(ssh) = directory(tree, &["etc", "ssh"])? else { return Ok(()) };
        for key in keys(&ssh)? {
            ssh.remove_file(&key)?;
            if seen.contains(&key) {
                mknodat(&ssh, key.as_str(), FileType::CharacterDevice, Mode::empty(), 0)?;
            }
        }
        Ok(())
    };
    steps().map_err(|source| failed(&path, source))
}

fn directory(tree: &Dir, names: &[&str]) -> io::Result<Option<Dir>> {
    match tree.open_below(names) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            // A link or a file in its place is not what an SSH server's package makes: left alone.
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => Ok(None),
            _ => Err(error),
        },
    }
}

/// The host keys in a directory.
fn keys(ssh: &Dir) -> io::Result<Vec<String>> {
    let names = ssh.entries()?.into_iter().filter_map(|entry| entry.name.into_string().ok());
    let is_key = |name: &String| {
        name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub"))
    };
    Ok(names.filter(is_key).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "secret").unwrap();
        }
        directory
    }

    fn open(directory: &tempfile::TempDir) -> Dir {
        Dir::open(directory.path()).unwrap()
    }

    #[test]
    fn a_copy_has_no_id_and_no_keys() {
        let keys = ["etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub"];
        let copy = tree(&[keys[0], keys[1], "etc/ssh/ssh_config", "etc/ssh/ssh_host_x", "etc/machine-id"]);
        forget(&open(&copy), None).unwrap();
        assert_eq!(std::fs::read_to_string(copy.path().join("etc/machine-id")).unwrap(), "");
        let names = open(&copy).open_below(&["etc", "ssh"]).unwrap();
        let mut names = names.names().unwrap();
        names.sort();
        assert_eq!(names, ["ssh_config", "ssh_host_x"]);
    }

    #[test]
    fn keys_of_the_image_do_not_come_back() {
        let image = tree(&["etc/ssh/ssh_host_rsa_key"]);
        let layer = tree(&["etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_new_key"]);
        forget(&open(&layer), Some(&open(&image))).unwrap();
        let whiteout = std::fs::symlink_metadata(layer.path().join("etc/ssh/ssh_host_rsa_key")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert!(!layer.path().join("etc/ssh/ssh_host_new_key").exists());
        assert!(!layer.path().join("etc/machine-id").exists());
    }

    #[test]
    fn links_are_not_followed() {
        let victim = tree(&["ssh/ssh_host_rsa_key", "machine-id"]);
        let copy = tree(&["etc/x"]);
        symlink(victim.path().join("ssh"), copy.path().join("etc/ssh")).unwrap();
        symlink(victim.path().join("machine-id"), copy.path().join("etc/machine-id")).unwrap();
        forget(&open(&copy), None).unwrap();
        assert_eq!(std::fs::read_to_string(victim.path().join("machine-id")).unwrap(), "secret");
        assert!(victim.path().join("ssh/ssh_host_rsa_key").exists());
    }
}
