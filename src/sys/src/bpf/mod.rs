//! Programs that the kernel asks which devices the processes of a cgroup2 cgroup may open and make nodes of
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`): loaded, attached, found again, replaced.
//!
//! The calls are made by hand: five commands of one system call with some integers each. The libraries that have them bring a
//! loader of ELF files and of debugging information, or the C one, for a process that keeps `CAP_SYS_ADMIN`.
//!
//! What is attached stays when its descriptor is closed, and goes with the cgroup. It is attached so that other
//! programs may be attached beside and below it (`BPF_F_ALLOW_MULTI`): then all are asked, those of the cgroups above too, and one
//! no is enough; and then the kernel detaches none without a descriptor of it (`find_detach_entry` of
//! `kernel/bpf/cgroup.c`; of other programs anybody who can open the cgroup's directory).
//!
//! | command | rights that it takes (`kernel/bpf/syscall.c`, 6.1 to 6.18) |
//! |---|---|
//! | `BPF_PROG_LOAD` of this type | `CAP_BPF` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN` |
//! | `BPF_PROG_ATTACH`, `BPF_PROG_DETACH` | none: descriptors of the program and of the cgroup |
//! | `BPF_PROG_QUERY` | `CAP_NET_ADMIN`; from 6.9 on `CAP_SYS_ADMIN` does, too |
//! | `BPF_PROG_GET_FD_BY_ID` | `CAP_SYS_ADMIN` |
//! | `BPF_OBJ_GET_INFO_BY_FD` | none |
//!
//! Sources: `bpf(2)`, `include/uapi/linux/bpf.h`.

mod device;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

pub use device::{Device, DeviceAccess};

/// What programs are called that are loaded here. The kernel shows it (`bpftool prog`), and they are found again by it.
const NAME: &[u8; 13] = b"cgrant_device";
/// No helper function of the kernel's is called that would ask for another one.
const LICENSE: &[u8; 11] = b"Apache-2.0\0";
/// Most programs at one cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_ATTACHED: usize = 64;

/// `enum bpf_cmd`.
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
/// The commands that are made here, for a filter of system calls.
pub const COMMANDS: [u32; 5] = [PROG_LOAD, PROG_ATTACH, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, PROG_QUERY];

/// `BPF_PROG_TYPE_CGROUP_DEVICE` of `enum bpf_prog_type`.
const TYPE: u32 = 15;
/// `BPF_CGROUP_DEVICE` of `enum bpf_attach_type`.
const PLACE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Kinds of `union bpf_attr`; a later kernel takes what a field that it knows and we don't has as 0.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Whole: some kernels write `revision` whatever size they are told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    unused: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct GetById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` as far as the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// A loaded program. It goes with its last descriptor, unless it is attached.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

impl DeviceProgram {
    /// Loads a program that says yes to what these devices allow, together, and no to everything else.
    ///
    /// # Errors
    /// `EPERM` without the rights; `EINVAL` and `ENOSYS` from a kernel without such programs (`CONFIG_CGROUP_BPF`,
    /// `CONFIG_BPF_SYSCALL`); `E2BIG` for more devices than a program has room for.
    pub fn load(devices: &[Device]) -> io::Result<Self> {
        let program = device::program(devices);
        let mut prog_name = [0; 16];
        prog_name.iter_mut().zip(NAME).for_each(|(to, from)| *to = *from);
        let mut attributes = Load {
            prog_type: TYPE,
            insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            insns: program.as_ptr().expose_provenance() as u64,
            license: LICENSE.as_ptr().expose_provenance() as u64,
            prog_name,
            ..Load::default()
        };
        // SAFETY: `attributes` is of the kind of the command; what it points to is only read, and outlives the call: `program`
        // with so many instructions of 8 bytes, and the licence, which ends with a zero.
        unsafe { descriptor(PROG_LOAD, &mut attributes) }.map(Self)
    }

    /// Has it asked from now on about the processes in a cgroup and below it, in addition to what is asked.
    ///
    /// # Errors
    /// `EBADF` if this is no directory of cgroup2; `EPERM` where a program above, or here, lets no other be; `E2BIG` past 64.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<()> {
        attach(cgroup, Attach { attach_flags: ALLOW_MULTI, ..self.attributes() })
    }

    /// The same in the place of another one: at no time is neither asked.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); `ENOENT` if the other is not attached there.
    pub fn replace(&self, cgroup: BorrowedFd<'_>, other: &Self) -> io::Result<()> {
        let replace_bpf_fd = raw(other.0.as_fd());
        attach(cgroup, Attach { attach_flags: ALLOW_MULTI | REPLACE, replace_bpf_fd, ..self.attributes() })
    }

    /// The program that was loaded here or by another process of ours and is attached to this very cgroup, if one is.
    ///
    /// # Errors
    /// `EPERM` without the rights; `EBADF` if this is no directory of cgroup2.
    pub fn attached(cgroup: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        for id in ids(cgroup)? {
            let mut attributes = GetById { id, ..GetById::default() };
            // SAFETY: `attributes` is of the kind of the command, and points to nothing.
            let program = match unsafe { descriptor(PROG_GET_FD_BY_ID, &mut attributes) } {
                Ok(fd) => Self(fd),
                // Gone meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(error) => return Err(error),
            };
            if program.name()?.starts_with(NAME) {
                return Ok(Some(program));
            }
        }
        Ok(None)
    }

    fn attributes(&self) -> Attach {
        Attach { attach_bpf_fd: raw(self.0.as_fd()), attach_type: PLACE, ..Attach::default() }
    }

    fn name(&self) -> io::Result<[u8; 16]> {
        let mut info = Info::default();
        let mut attributes = GetInfo {
            bpf_fd: raw(self.0.as_fd()),
            info_len: u32::try_from(size_of::<Info>()).map_err(|_| io::ErrorKind::InvalidInput)?,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: `attributes` is of the kind of the command; the kernel writes no more than `info_len` bytes to `info`, of which
        // any are valid, and which outlives the call.
        unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info.name)
    }
}

fn attach(cgroup: BorrowedFd<'_>, mut attributes: Attach) -> io::Result<()> {
    attributes.target_fd = raw(cgroup);
    // SAFETY: `attributes` is of the kind of the command, and points to nothing.
    unsafe { call(PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Numbers of the programs that are attached to this very cgroup.
fn ids(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_ATTACHED];
    let mut attributes = Query {
        target_fd: raw(cgroup),
        attach_type: PLACE,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(ids.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        ..Query::default()
    };
    // SAFETY: `attributes` is of the kind of the command; the kernel writes no more than `count` numbers to `ids`, which has room
    // for so many and outlives the call.
    unsafe { call(PROG_QUERY, &mut attributes) }?;
    ids.truncate(usize::try_from(attributes.count).unwrap_or(MAX_ATTACHED));
    Ok(ids)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// As [`call`]; the command has to be one whose result is a new descriptor.
unsafe fn descriptor<A>(command: u32, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller sees to it.
    let number = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// `bpf(2)`.
///
/// # Safety
/// `A` has to be the kind of `union bpf_attr` that the command takes, without padding, and what its pointers lead to has to be
/// valid for what the kernel does with it.
unsafe fn call<A>(command: u32, attributes: &mut A) -> io::Result<i32> {
    let attributes: *mut A = attributes;
    // SAFETY: the caller sees to what is in `attributes`, of which the kernel is told the size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}
