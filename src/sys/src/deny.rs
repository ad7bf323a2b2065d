//! Deny-lists of system calls for programs of others, which may gain rights: unlike [`crate::seccomp`], `no_new_privs` is not
//! set, so set-uid programs go on working, and programs of the 32-bit architecture are not killed.
//!
//! Sources: `seccomp(2)`, `bpf(4)`; the numbers of i386 calls are those of `arch/x86/entry/syscalls/syscall_32.tbl`.

use std::io;

use rustix::io::Errno;

use crate::privilege::require_one_thread;

/// A system call that is answered with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Its number in the tables of this architecture (`SYS_*`); `None` if there is no such call there.
    pub native: Option<i64>,
    /// Its number for programs of i386, which a 64-bit x86 kernel runs too; of no meaning elsewhere.
    pub i386: Option<u32>,
    /// What it is answered with.
    pub errno: Errno,
}

/// `offsetof(struct seccomp_data, nr)` and `arch`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_*` (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
const I386: u32 = 0x4000_0003;
/// Bit of the calls of the x32 ABI, which passes as x86-64.
const X32: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// From now on this process and its children can't make these calls, in addition to whatever else is filtered. Calls of the
/// x32 ABI, and of architectures that are neither this one nor its 32-bit one, do not exist (`ENOSYS`).
///
/// # Errors
/// `EBUSY` with more than one thread; `EACCES` without `CAP_SYS_ADMIN` in the process's user namespace; `EINVAL` for a list
/// that is too long (150 calls of one architecture never are) or has a number that no call has, and from a kernel without filters.
pub fn deny(list: &[Denied]) -> io::Result<()> {
    require_one_thread()?;
    let mut program = program(list).ok_or(Errno::INVAL)?;
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `length` instructions from an array that has so many and outlives the call, checks them, and
    // writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `if arch == native { … } else if arch == i386 { … } else { ENOSYS }`.
fn program(list: &[Denied]) -> Option<Vec<libc::sock_filter>> {
    let native = section(list.iter().map(|call| (call.native, call.errno)), cfg!(target_arch = "x86_64"))?;
    let i386 = section(list.iter().map(|call| (call.i386.map(i64::from), call.errno)), false)?;
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(EQUAL, 0, 1, NATIVE),
        instruction(JUMP, 0, 0, u32::try_from(if cfg!(target_arch = "x86_64") { 3 } else { 1 }).ok()?),
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(instruction(EQUAL, 0, 1, I386));
        program.push(instruction(JUMP, 0, 0, u32::try_from(native.len()).ok()?.checked_add(1)?));
    }
    program.push(refuse(Errno::NOSYS));
    program.extend(native);
    if cfg!(target_arch = "x86_64") {
        program.extend(i386);
    }
    Some(program)
}

/// What belongs to one architecture. The kernel goes through it for every number of a call when it is set, and at each call: so the
/// numbers are halved until few are left, and those are compared.
fn section(calls: impl Iterator<Item = (Option<i64>, Errno)>, x32: bool) -> Option<Vec<libc::sock_filter>> {
    let mut refused = Vec::new();
    for (number, errno) in calls {
        if let Some(number) = number {
            refused.push((u32::try_from(number).ok()?, errno));
        }
    }
    refused.sort_by_key(|(number, _)| *number);
    // Of several words on one number the first counts.
    refused.dedup_by_key(|(number, _)| *number);
    let mut steps = Vec::new();
    if x32 {
        steps.push(Step { code: AT_LEAST, k: X32, yes: To::Refusal(Errno::NOSYS), no: To::Next });
    }
    compare(&refused, &mut steps)?;
    assemble(&steps)
}

/// Where a comparison leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Step(usize),
    Permission,
    Refusal(Errno),
}

/// A comparison with the number of the call.
#[derive(Debug, Clone, Copy)]
struct Step {
    code: u16,
    k: u32,
    yes: To,
    no: To,
}

/// So many numbers are compared one after the other.
const FEW: usize = 4;

/// Compares with these numbers, the smallest first. The last comparison, whichever it is, leads to permission.
fn compare(refused: &[(u32, Errno)], steps: &mut Vec<Step>) -> Option<()> {
    if refused.len() <= FEW {
        let equal =
            |(k, errno): &(u32, Errno)| Step { code: EQUAL, k: *k, yes: To::Refusal(*errno), no: To::Next };
        steps.extend(refused.iter().map(equal));
        if let Some(last) = steps.last_mut() {
            last.no = To::Permission;
        }
        return Some(());
    }
    let (lower, upper) = refused.split_at_checked(refused.len() / 2)?;
    let fork = steps.len();
    steps.push(Step { code: AT_LEAST, k: upper.first()?.0, yes: To::Next, no: To::Next });
    compare(lower, steps)?;
    let above = steps.len();
    steps.get_mut(fork)?.yes = To::Step(above);
    compare(upper, steps)
}

/// The instructions, at their end permission and refusals. `None` if one is too far away to be led to.
fn assemble(steps: &[Step]) -> Option<Vec<libc::sock_filter>> {
    let permission = steps.len();
    let mut errors: Vec<Errno> = Vec::new();
    for step in steps {
        if let To::Refusal(errno) = step.yes
            && !errors.contains(&errno)
        {
            errors.push(errno);
        }
    }
    let away = |at: usize, to: To| {
        let place = match to {
            To::Next => at.checked_add(1)?,
            To::Step(place) => place,
            To::Permission => permission,
            To::Refusal(wanted) => {
                permission.checked_add(1)?.checked_add(errors.iter().position(|errno| *errno == wanted)?)?
            }
        };
        u8::try_from(place.checked_sub(at)?.checked_sub(1)?).ok()
    };
    let mut section = vec![instruction(LOAD, 0, 0, NUMBER)];
    for (at, step) in steps.iter().enumerate() {
        section.push(instruction(step.code, away(at, step.yes)?, away(at, step.no)?, step.k));
    }
    section.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    section.extend(errors.into_iter().map(refuse));
    Some(section)
}

fn refuse(errno: Errno) -> libc::sock_filter {
    instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.raw_os_error().unsigned_abs())
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// What the kernel would do for a call: the program is interpreted as bpf(4) says.
    fn verdict(program: &[libc::sock_filter], architecture: u32, number: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => value = if step.k == ARCHITECTURE { architecture } else { number },
                EQUAL => at += usize::from(if value == step.k { step.jt } else { step.jf }),
                AT_LEAST => at += usize::from(if value >= step.k { step.jt } else { step.jf }),
                JUMP => at += step.k as usize,
                RETURN => return step.k,
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn each_architecture_has_its_own_numbers() {
        let list = [
            Denied { native: Some(7), i386: Some(9), errno: Errno::PERM },
            Denied { native: None, i386: Some(7), errno: Errno::NOSYS },
            Denied { native: Some(8), i386: None, errno: Errno::NOSYS },
        ];
        let program = program(&list).unwrap();
        let refused = |errno: Errno| libc::SECCOMP_RET_ERRNO | errno.raw_os_error() as u32;
        let native = |number| verdict(&program, NATIVE, number);
        assert_eq!(native(7), refused(Errno::PERM));
        assert_eq!(native(8), refused(Errno::NOSYS));
        assert_eq!(native(9), libc::SECCOMP_RET_ALLOW);
        assert_eq!(verdict(&program, 0x1234, 9), refused(Errno::NOSYS));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(native(X32 | 1), refused(Errno::NOSYS));
            let i386 = |number| verdict(&program, I386, number);
            assert_eq!(i386(9), refused(Errno::PERM));
            assert_eq!(i386(7), refused(Errno::NOSYS));
            assert_eq!(i386(8), libc::SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn every_number_has_the_verdict_that_the_list_gives() {
        let errors = [Errno::PERM, Errno::NOSYS, Errno::ACCESS];
        for length in 0..120 {
            // In no order, with gaps, neighbours and numbers that come twice.
            let list: Vec<Denied> = (0..length)
                .map(|at: usize| {
                    let (native, i386) = ((at * 37 % 211) as i64, (at * 11 % 67) as u32);
                    let i386 = (!at.is_multiple_of(3)).then_some(i386);
                    Denied { native: Some(native), i386, errno: errors[at % errors.len()] }
                })
                .collect();
            let program = program(&list).unwrap();
            let expected = |of: &dyn Fn(&Denied) -> Option<u32>, number| {
                let found = list.iter().find(|denied| of(denied) == Some(number));
                found.map_or(libc::SECCOMP_RET_ALLOW, |denied| {
                    libc::SECCOMP_RET_ERRNO | denied.errno.raw_os_error() as u32
                })
            };
            for number in (0..220).chain([X32 - 1]) {
                let native = expected(&|denied| denied.native.map(|number| number as u32), number);
                assert_eq!(verdict(&program, NATIVE, number), native, "{number} of {length}");
                if cfg!(target_arch = "x86_64") {
                    let i386 = expected(&|denied| denied.i386, number);
                    assert_eq!(verdict(&program, I386, number), i386, "{number} of {length} for i386");
                }
            }
            if cfg!(target_arch = "x86_64") {
                let none = libc::SECCOMP_RET_ERRNO | Errno::NOSYS.raw_os_error() as u32;
                assert_eq!(
                    [X32, X32 | 37, u32::MAX].map(|number| verdict(&program, NATIVE, number)),
                    [none; 3]
                );
            }
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_no_program() {
        let list = |length| -> Vec<Denied> {
            (0..length)
                .map(|native| Denied { native: Some(native), i386: None, errno: Errno::PERM })
                .collect()
        };
        assert!(program(&list(150)).is_some());
        assert!(program(&list(4000)).is_none());
    }

    #[test]
    fn numbers_that_no_call_has_are_no_program() {
        let call = |native| Denied { native: Some(native), i386: None, errno: Errno::PERM };
        assert!(program(&[call(-1)]).is_none());
        assert!(program(&[call(i64::MAX)]).is_none());
    }
}
