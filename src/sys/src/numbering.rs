//! How another pid namespace numbers the processes that this one sees, both ways.
//!
//! A number proves nothing for long: what is found by one is given as a [`Pidfd`], which had the number while it was held.
//! Sources: `ioctl_nsfs(2)`, `pidfd_show_fdinfo` of `kernel/fork.c` (from 6.9 on `fs/pidfs.c`), `pid_namespaces(7)`.

use std::io;

use rustix::io::Errno;

use crate::{namespace::PidnsFd, pidfd::Pidfd, process::ProcFs};

/// A pid namespace at or below this process's own, by one of its processes.
#[derive(Debug)]
pub struct Numbering<'p> {
    proc: &'p ProcFs,
    namespace: PidnsFd,
    inode: u64,
    /// How many levels of namespaces there are from this process's own down to it, with both.
    depth: usize,
}

impl<'p> Numbering<'p> {
    /// As this process numbers others.
    ///
    /// # Errors
    /// `ESRCH` if it has ended, or can't be seen from here; `EACCES` if this process may not look.
    pub fn of(proc: &'p ProcFs, process: &Pidfd) -> io::Result<Self> {
        let numbers = process.numbers()?;
        let namespace = proc.open_pid_namespace(*numbers.first().ok_or(Errno::SRCH)?)?;
        // Only of one that lives was this the number.
        if !process.is_alive()? {
            return Err(Errno::SRCH.into());
        }
        let inode = namespace.inode()?;
        Ok(Self { proc, namespace, inode, depth: numbers.len() })
    }

    /// What a process or thread of this number here is called there; `None` if it is not seen there, or has ended.
    ///
    /// # Errors
    /// `ENOTTY` of a thread, on kernels that tell of processes only (before 6.11).
    pub fn number_of(&self, pid: u32) -> io::Result<Option<u32>> {
        match self.namespace.number_of(pid) {
            Err(error) if is_untold(&error) => self.number_of_process(pid),
            told => told,
        }
    }

    /// The process, not just a thread, that has this number there. `candidates` are numbers here of those that are looked
    /// through where the kernel does not tell which it is (before 6.11).
    ///
    /// # Errors
    /// Those of the kernel. None for a number that nobody has.
    pub fn process(
        &self,
        number: u32,
        candidates: impl IntoIterator<Item = u32>,
    ) -> io::Result<Option<Pidfd>> {
        match self.namespace.process_of(number) {
            Ok(pid) => self.holding(pid, |pid| self.namespace.number_of(pid), number),
            Err(error) if is_untold(&error) => self.among(candidates, number),
            Err(error) => Err(error),
        }
    }

    /// The one of these that has the number there.
    fn among(&self, candidates: impl IntoIterator<Item = u32>, number: u32) -> io::Result<Option<Pidfd>> {
        for pid in candidates {
            let Ok(process) = Pidfd::open(pid) else { continue };
            if self.called(&process)? == Some(number) {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    /// The process of this number here, if that is what it is called there when it is held.
    ///
    /// An attacker wants the number to have become another process's in between: what counts is what the process that is
    /// held is called, and it lives when that was told.
    fn holding(
        &self,
        pid: Option<u32>,
        called: impl Fn(u32) -> io::Result<Option<u32>>,
        number: u32,
    ) -> io::Result<Option<Pidfd>> {
        let Some(pid) = pid else { return Ok(None) };
        let Ok(process) = Pidfd::open(pid) else { return Ok(None) };
        let is_it = called(pid)? == Some(number) && process.is_alive()?;
        Ok(is_it.then_some(process))
    }

    fn number_of_process(&self, pid: u32) -> io::Result<Option<u32>> {
        match Pidfd::open(pid) {
            Ok(process) => self.called(&process),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => Ok(None),
            // A thread.
            Err(_) => Err(Errno::NOTTY.into()),
        }
    }

    /// What a process is called there, by its pidfd and the namespace it is in: as kernels before 6.11 tell.
    ///
    /// An attacker wants a process that is none of the namespace's to be taken for one, by being as deep in another one: its
    /// namespace, or one around that, has to be this very one.
    fn called(&self, process: &Pidfd) -> io::Result<Option<u32>> {
        let Ok(numbers) = process.numbers() else { return Ok(None) };
        let own = numbers.first().copied().ok_or(Errno::SRCH)?;
        let Some(number) = self.depth.checked_sub(1).and_then(|level| numbers.get(level)) else {
            return Ok(None);
        };
        let around = numbers.len().saturating_sub(self.depth);
        let is_here = self.is_around(own, around).unwrap_or(false) && process.is_alive()?;
        Ok(is_here.then_some(*number))
    }

    /// Is it the namespace so many levels around that of a process?
    fn is_around(&self, pid: u32, levels: usize) -> io::Result<bool> {
        if levels == 0 {
            return Ok(self.proc.pid_namespace(pid)? == self.inode);
        }
        let mut namespace = self.proc.open_pid_namespace(pid)?;
        for _ in 0..levels {
            namespace = namespace.parent()?;
        }
        Ok(namespace.inode()? == self.inode)
    }
}

/// Does the error say that the kernel has no such question?
fn is_untold(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::NOTTY)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::{
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn start(words: &[&str]) -> Killed {
        let mut command = Command::new(words[0]);
        Killed(command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    /// The processes of a new pid namespace, in the order of their numbers there, and what ends them.
    fn namespace(proc: &ProcFs, script: &str, count: usize) -> (Killed, Vec<u32>) {
        let words =
            ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c", script];
        let outside = start(&words);
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < end, "the namespace does not fill");
            let mut found = vec![outside.0.id()];
            let mut at = 0;
            while let Some(pid) = found.get(at) {
                found.extend(proc.children(*pid).unwrap_or_default());
                at += 1;
            }
            let slept = |pid: &u32| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.trim() == "sleep"
            };
            if found.iter().filter(|pid| slept(pid)).count() == count {
                return (outside, found.split_off(1));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// By both ways, that of new kernels if this is one.
    fn both(here: &Numbering<'_>, number: u32, candidates: &[u32]) -> Option<u32> {
        let pid = |process: Option<Pidfd>| process.map(|process| process.pid().unwrap());
        let told = pid(here.process(number, candidates.iter().copied()).unwrap());
        assert_eq!(pid(here.among(candidates.iter().copied(), number).unwrap()), told);
        told
    }

    #[test]
    fn numbers_lead_to_processes_of_the_namespace_and_to_no_others() {
        let proc = ProcFs::open().unwrap();
        let (_ours, ours) = namespace(&proc, "sleep 600 & exec sleep 600", 2);
        let (_others, others) = namespace(&proc, "sleep 600 & sleep 600 & sleep 600 & exec sleep 600", 4);
        let here = Numbering::of(&proc, &Pidfd::open(ours[0]).unwrap()).unwrap();
        let all: Vec<u32> = others.iter().chain(&ours).copied().chain([std::process::id()]).collect();
        assert_eq!(both(&here, 1, &all), Some(ours[0]));
        assert_eq!(both(&here, 2, &all), Some(ours[1]));
        for nobody in [0, 3, 4, std::process::id(), ours[1], others[0], u32::MAX] {
            assert_eq!(both(&here, nobody, &all), None, "{nobody}");
        }
        for (pid, number) in [(ours[0], Some(1)), (ours[1], Some(2)), (others[3], None), (others[0], None)] {
            assert_eq!(here.number_of(pid).unwrap(), number);
            assert_eq!(here.number_of_process(pid).unwrap(), number);
        }
        // What lies deeper is seen, by the number that it has in between.
        let script = "unshare --pid --fork sh -c 'sleep 600 & exec sleep 600'";
        let (_outer, deep) = namespace(&proc, script, 2);
        let outer = Numbering::of(&proc, &Pidfd::open(deep[0]).unwrap()).unwrap();
        let last = *deep.last().unwrap();
        let number = outer.number_of_process(last).unwrap().unwrap();
        assert_eq!(both(&outer, number, &deep), Some(last));
        let inner = Numbering::of(&proc, &Pidfd::open(last).unwrap()).unwrap();
        assert_eq!((inner.depth, outer.depth), (3, 2));
        assert_eq!(both(&inner, 2, &deep), Some(last));
        assert_eq!((inner.number_of_process(deep[0]).unwrap(), both(&inner, number, &deep)), (None, None));
    }

    #[test]
    fn a_number_that_has_changed_hands_leads_to_nobody() {
        let proc = ProcFs::open().unwrap();
        let own = Pidfd::own().unwrap();
        let here = Numbering::of(&proc, &own).unwrap();
        let mut sleeper = start(&["sleep", "600"]);
        let pid = sleeper.0.id();
        // The kernel says which process has the number; by the time that one is held, it is called otherwise.
        assert!(here.holding(Some(pid), |_| Ok(Some(7)), 8).unwrap().is_none());
        assert!(here.holding(Some(pid), |_| Ok(None), 8).unwrap().is_none());
        assert!(here.holding(Some(pid), |_| Ok(Some(8)), 8).unwrap().is_some());
        // It ended before it was told what it is called.
        let ended = here.holding(
            Some(pid),
            |_| {
                rustix::process::kill_process(
                    rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
                    rustix::process::Signal::KILL,
                )?;
                let pidfd = Pidfd::open(pid)?;
                while pidfd.is_alive()? {
                    std::thread::yield_now();
                }
                Ok(Some(8))
            },
            8,
        );
        assert!(ended.unwrap().is_none());
        sleeper.0.wait().unwrap();
        assert!(here.among([pid], pid).unwrap().is_none());
        assert_eq!(here.number_of(pid).unwrap(), None);
        assert_eq!(here.number_of_process(pid).unwrap(), None);
        // A thread is no process.
        let (tell, told) = std::sync::mpsc::channel();
        let (stay, stays) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()).unwrap();
            let _ = stays.recv();
        });
        let tid = told.recv().unwrap();
        assert_eq!(both(&here, tid, &[tid]), None);
        drop(stay);
        thread.join().unwrap();
    }
}
