//! The program itself: a list of devices as instructions of the kernel's virtual machine. Pure.

/// What a process may do with a device, of `BPF_DEVCG_ACC_*`: bits of what has to be allowed together. Opening for reading and
/// writing asks for both at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceAccess(u8);

impl DeviceAccess {
    /// To make nodes of it, where whoever does may make nodes.
    pub const MKNOD: Self = Self(1);
    /// To open it for reading.
    pub const READ: Self = Self(2);
    /// To open it for writing.
    pub const WRITE: Self = Self(4);
    /// All of these.
    pub const ALL: Self = Self(7);

    /// Of its bits; others than those of [`ALL`](Self::ALL) are left out.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Its bits.
    pub fn bits(self) -> u8 {
        self.0
    }
}

/// Character devices, and what may be done with them. No program here allows a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number; `None` for all.
    pub minor: Option<u32>,
    /// What may be done with them.
    pub access: DeviceAccess,
}

/// `BPF_DEVCG_DEV_CHAR`.
const CHARACTER: i32 = 2;
/// Where the instructions find what they are asked (`struct bpf_cgroup_dev_ctx`).
const KIND_AND_ACCESS: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

/// Operations (`include/uapi/linux/bpf.h`).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_SAME: u8 = 0x15;
const JUMP_UNLESS_SAME: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: the result, the question, and what is taken out of it.
const RESULT: u8 = 0;
const ASKED: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR_ASKED: u8 = 4;
const MINOR_ASKED: u8 = 5;

/// An instruction: `struct bpf_insn`, of 8 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    operation: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    number: i32,
}

fn instruction(operation: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
    // How a C compiler lays out the two bit fields.
    let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
    Instruction { operation, registers, offset, number }
}

/// The program for these devices: 1 for yes, 0 for no.
///
/// A number with the upper bit would be taken as negative, and be none that is asked: such a device is never allowed.
pub(super) fn program(devices: &[Device]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, ASKED, KIND_AND_ACCESS, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR_ASKED, ASKED, MAJOR, 0),
        instruction(LOAD_WORD, MINOR_ASKED, ASKED, MINOR, 0),
        // What is no character device is refused before any of them is looked at.
        instruction(MOVE_NUMBER, RESULT, 0, 0, 0),
        instruction(JUMP_IF_SAME, KIND, 0, 1, CHARACTER),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    devices.iter().for_each(|device| program.extend(one(*device)));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// The part for one device, which goes on behind itself if it does not say yes.
fn one(device: Device) -> Vec<Instruction> {
    let number = u32::cast_signed;
    let yes = [instruction(MOVE_NUMBER, RESULT, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)];
    // What is asked for and not allowed, by names that there are not yet too; the question itself is not needed any more.
    let refused = !u16::from(device.access.0);
    let access = [
        instruction(MOVE, ASKED, ACCESS, 0, 0),
        instruction(AND_NUMBER, ASKED, 0, 0, i32::from(refused)),
        instruction(JUMP_UNLESS_SAME, ASKED, 0, 2, 0),
    ];
    let minor = device.minor.map(|minor| {
        let behind = access.len() + yes.len();
        instruction(JUMP_UNLESS_SAME, MINOR_ASKED, 0, offset(behind), number(minor))
    });
    let behind = usize::from(minor.is_some()) + access.len() + yes.len();
    let major = instruction(JUMP_UNLESS_SAME, MAJOR_ASKED, 0, offset(behind), number(device.major));
    [major].into_iter().chain(minor).chain(access).chain(yes).collect()
}

/// Of some few instructions.
fn offset(count: usize) -> i16 {
    i16::try_from(count).unwrap_or(i16::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel asks.
    #[derive(Debug, Clone, Copy)]
    struct Question {
        kind: u32,
        access: u32,
        major: u32,
        minor: u32,
    }

    /// Runs a program as the kernel's documentation has it (Documentation/bpf/standardization/instruction-set.rst). Nothing is
    /// read before it is written, and no way leads back or out.
    fn run(program: &[Instruction], asked: Question) -> u64 {
        let mut registers: [Option<u64>; 11] = [None; 11];
        // The question's address.
        registers[1] = Some(0);
        let context = [asked.access << 16 | asked.kind, asked.major, asked.minor];
        let mut at = 0;
        loop {
            let Instruction { operation, registers: pair, offset, number } = program[at];
            let (to, from) = (usize::from(pair & 0xf), usize::from(pair >> 4));
            let number = i64::from(number).cast_unsigned();
            at += 1;
            let jump = |is: bool| if is { usize::try_from(offset).unwrap() } else { 0 };
            match operation {
                0x61 => {
                    assert_eq!((from, registers[from]), (1, Some(0)), "the question is where it was");
                    registers[to] = Some(context[usize::try_from(offset).unwrap() / 4].into());
                }
                0xbf => registers[to] = Some(registers[from].unwrap()),
                0xb7 => registers[to] = Some(number),
                0x57 => registers[to] = Some(registers[to].unwrap() & number),
                0x77 => registers[to] = Some(registers[to].unwrap() >> number),
                0x15 => at += jump(registers[to].unwrap() == number),
                0x55 => at += jump(registers[to].unwrap() != number),
                0x95 => return registers[0].unwrap(),
                other => panic!("{other:#x}"),
            }
        }
    }

    /// What the program is to say.
    fn allowed(devices: &[Device], asked: Question) -> bool {
        let may = |device: &Device| {
            device.major == asked.major
                && device.minor.is_none_or(|minor| minor == asked.minor)
                && asked.access & !u32::from(device.access.0) == 0
        };
        asked.kind == 2 && devices.iter().any(may)
    }

    #[test]
    fn every_access_to_every_kind_of_device_is_decided() {
        for bits in 0..=DeviceAccess::ALL.0 {
            for listed in [None, Some(3), Some(0)] {
                let devices = [Device { major: 1, minor: listed, access: DeviceAccess::from_bits(bits) }];
                let program = program(&devices);
                for kind in 0..4 {
                    for access in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 0x8000, 0xffff] {
                        for (major, minor) in [(1, 3), (1, 0), (1, 8), (2, 3), (0, 0), (3, 1)] {
                            let asked = Question { kind, access, major, minor };
                            let said = run(&program, asked) == 1;
                            assert_eq!(said, allowed(&devices, asked), "{devices:?} {asked:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn without_devices_nothing_is_allowed() {
        for kind in [1, 2] {
            assert_eq!(run(&program(&[]), Question { kind, access: 2, major: 1, minor: 3 }), 0);
        }
    }

    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![0..4_u32, Just(0xfff), Just(0xf_ffff), Just(u32::MAX), any::<u32>()]
    }

    fn device() -> impl Strategy<Value = Device> {
        let minor = prop_oneof![Just(None), number().prop_map(Some)];
        (number(), minor, any::<u8>()).prop_map(|(major, minor, bits)| Device {
            major: major & 0x7fff_ffff,
            minor: minor.map(|minor| minor & 0x7fff_ffff),
            access: DeviceAccess::from_bits(bits),
        })
    }

    proptest! {
        #[test]
        fn a_program_says_what_its_devices_say(
            devices in prop::collection::vec(device(), 0..40),
            kind in 0..4_u32,
            access in 0..16_u32,
            (major, minor) in (number(), number()),
        ) {
            let asked = Question { kind, access, major, minor };
            let said = run(&program(&devices), asked);
            prop_assert!(said <= 1);
            prop_assert_eq!(said == 1, allowed(&devices, asked));
        }
    }
}
