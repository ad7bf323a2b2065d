//! A file system that takes what it is asked and never answers: who waits for it can't be killed until it goes.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// What the kernel reads at least (`FUSE_MIN_READ_BUFFER`), and more than it asks.
const BUFFER: usize = 256 * 1024;
const INIT: u32 = 26;

/// The file system, mounted nowhere but in its descriptor.
pub struct Silent {
    // What waits ends when this one is closed.
    server: File,
    mount: OwnedFd,
}

impl Silent {
    /// Mounts it, and says what has to be said before anything is asked (linux/fuse.h).
    pub fn new() -> Self {
        let mut server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        let number = server.as_raw_fd().to_string();
        for (key, value) in
            [("fd", number.as_str()), ("rootmode", "40755"), ("user_id", "0"), ("group_id", "0")]
        {
            fsconfig_set_string(&context, key, value).unwrap();
        }
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let (opcode, unique) = take(&mut server);
        assert_eq!(opcode, INIT);
        let mut answer = [0_u8; 80];
        answer[..4].copy_from_slice(&80_u32.to_ne_bytes());
        answer[8..16].copy_from_slice(&unique.to_ne_bytes());
        answer[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        answer[20..24].copy_from_slice(&31_u32.to_ne_bytes());
        answer[36..40].copy_from_slice(&4096_u32.to_ne_bytes());
        assert_eq!(server.write(&answer).unwrap(), answer.len());
        Self { server, mount }
    }

    /// A process that waits for it.
    pub fn who_waits(&mut self) -> Child {
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd/0/").stdin(self.mount.try_clone().unwrap());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From now on it can't be killed.
        take(&mut self.server);
        child
    }
}

// Which operation is asked for, and by which number.
fn take(server: &mut File) -> (u32, u64) {
    let mut buffer = vec![0; BUFFER];
    let count = server.read(&mut buffer).unwrap();
    assert!(count >= 40, "{count}");
    (
        u32::from_ne_bytes(buffer[4..8].try_into().unwrap()),
        u64::from_ne_bytes(buffer[8..16].try_into().unwrap()),
    )
}
