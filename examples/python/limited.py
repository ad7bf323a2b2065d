#!/usr/bin/python3
"""Runs a command under limits, and shows how it bears them: a video encoder that is to leave the desktop usable.

    limited.py --memory 1G --cpu 50% -- ffmpeg -i holiday.mov holiday.webm

Needs python3-gi. The broker is reached over its own socket, else over the system bus.
"""

import argparse
import os
import signal
import subprocess
import sys

from gi.repository import Gio, GLib

MANAGER_PATH = "/org/cgrant/Broker1"
MANAGER = "org.cgrant.Broker1.Manager"
GRANT = "org.cgrant.Broker1.Grant"
CGROUP = "org.cgrant.Broker1.Cgroup"
SOCKET = "/run/cgrant/public/bus"
# It waits for a line, so that it is in its grant before it becomes the command; without one, because this program has died, it ends.
STAGE = 'read -r go && exec "$@" </dev/null'


class Refusal(Exception):
    """The broker's answer when it does not do what it was asked: which kind, why, and details such as `hint`."""

    def __init__(self, kind, reason, details=None):
        hint = (details or {}).get("hint")
        super().__init__(f"{kind}: {reason}" + (f"; {hint}" if hint else ""))


class Broker:
    """A connection to the broker."""

    def __init__(self, where, name):
        if where == "system":
            self.connection = Gio.bus_get_sync(Gio.BusType.SYSTEM)
            self.name = name
        elif where.startswith("bus:"):
            flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
            self.connection = Gio.DBusConnection.new_for_address_sync(where[4:], flags)
            self.name = name
        else:
            # Peer to peer: there is no bus, and so no name.
            flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT
            self.connection = Gio.DBusConnection.new_for_address_sync("unix:path=" + where, flags)
            self.name = None

    def call(self, path, interface, method, arguments=None, descriptors=()):
        """Calls a method; descriptors are named by their place in the list.

        The message is made by hand because errors of the broker have details beside their sentence, which GLib's calls lose.
        """
        call = Gio.DBusMessage.new_method_call(self.name, path, interface, method)
        if arguments is not None:
            call.set_body(arguments)
        fds = Gio.UnixFDList.new()
        for descriptor in descriptors:
            fds.append(descriptor)
        call.set_unix_fd_list(fds)
        answer, _ = self.connection.send_message_with_reply_sync(call, Gio.DBusSendMessageFlags.NONE, -1)
        body = answer.get_body()
        if answer.get_message_type() == Gio.DBusMessageType.ERROR:
            raise Refusal(answer.get_error_name(), *(body.unpack() if body else ("no reason given",)))
        return body.unpack() if body else ()

    def listen(self, path, interface, name, heard):
        """Calls `heard` with the arguments of each such signal."""
        self.connection.signal_subscribe(
            self.name, interface, name, path, None, Gio.DBusSignalFlags.NONE,
            lambda *signal: heard(*signal[5].unpack()),
        )


class Limited:
    """A command under limits."""

    def __init__(self, broker, options):
        self.broker = broker
        self.loop = GLib.MainLoop()
        self.status = 1
        limits = {"memory.max": options.memory, "cpu.max": options.cpu}
        limits = {key: value for key, value in limits.items() if value}
        # The lifetime is the default, "connection": the grant ends with this program, however that ends.
        wish = {
            "no-range": GLib.Variant("b", True),
            "limits": GLib.Variant("a{ss}", limits),
            "pressure": GLib.Variant("as", ["cpu", "memory", "io"]),
        }
        arguments = GLib.Variant("(sa{sv})", (options.name, wish))
        self.path, _, _ = broker.call(MANAGER_PATH, MANAGER, "CreateGrant", arguments)
        say("granted", self.path, *(f"{key}={value}" for key, value in limits.items()))
        broker.listen(self.path, CGROUP, "Oom", lambda kills: say(f"out of memory: {kills} killed so far"))
        broker.listen(self.path, CGROUP, "Pressure", lambda resource: say("pressure:", resource))
        broker.listen(self.path, GRANT, "Ended", self.grant_ended)
        self.start(options.command)
        GLib.timeout_add_seconds(options.every, self.show)
        for number in (signal.SIGINT, signal.SIGTERM):
            GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, number, self.stop)

    def start(self, command):
        """Starts the command within the grant."""
        child = subprocess.Popen(["sh", "-c", STAGE, "sh", *command], stdin=subprocess.PIPE)
        pidfd = os.pidfd_open(child.pid)
        try:
            arguments = GLib.Variant("(ha{sv})", (0, {}))
            self.broker.call(self.path, CGROUP, "Attach", arguments, [pidfd])
        finally:
            os.close(pidfd)
        child.stdin.write(b"go\n")
        child.stdin.close()
        GLib.child_watch_add(GLib.PRIORITY_DEFAULT, child.pid, self.command_ended)

    def show(self):
        """Shows what the grant uses and what it waits for."""
        (stat,) = self.broker.call(self.path, CGROUP, "Stat")
        # The part of the last 10 seconds in which something waited, in hundredths of a percent.
        waits = {resource: ten for resource, kind, ten, *_ in stat.get("pressure", []) if kind == "some"}
        shown = ", ".join(f"{resource} {ten / 100:.2f}%" for resource, ten in waits.items())
        memory = stat.get("memory-current", 0) / 2**20
        seconds = stat.get("cpu-usage-usec", 0) / 1e6
        kills = stat.get("oom-kills", 0)
        say(f"usage: memory {memory:.1f}M, cpu {seconds:.2f}s, killed {kills}; waits for {shown or 'what is not known'}")
        return GLib.SOURCE_CONTINUE

    def command_ended(self, _pid, wait_status):
        """Shows the last figures, and gives back what was granted."""
        self.status = os.waitstatus_to_exitcode(wait_status)
        if self.status < 0:
            self.status = 128 - self.status
        self.show()
        # What the command left behind ends with it.
        self.broker.call(self.path, GRANT, "Release", GLib.Variant("(a{sv})", ({"kill": GLib.Variant("b", True)},)))
        say("ended: status", self.status)
        self.loop.quit()

    def grant_ended(self, reason):
        """Somebody else ended it."""
        if reason != "released":
            say("the grant has ended:", reason)

    def stop(self):
        """Ends the command, which ends everything else."""
        self.broker.call(self.path, CGROUP, "Kill")
        return GLib.SOURCE_CONTINUE


def say(*words):
    """Prints a line at once."""
    print(*words, flush=True)


def main():
    default = os.environ.get("CGRANT_SOCKET") or (SOCKET if os.path.exists(SOCKET) else "system")
    parser = argparse.ArgumentParser(description="runs a command under limits, and shows how it bears them")
    parser.add_argument("--broker", default=default, help="a socket's path, system, or bus:ADDRESS (%(default)s)")
    parser.add_argument("--bus-name", default="org.cgrant.Broker1", help="the broker's name on a bus")
    parser.add_argument("--name", default="", help="name of the grant; the broker makes one up")
    parser.add_argument("--memory", help="most memory: 1G")
    parser.add_argument("--cpu", help="most processor time: 50%% of one")
    parser.add_argument("--every", type=int, default=5, help="seconds between two looks (%(default)s)")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        limited = Limited(Broker(options.broker, options.bus_name), options)
        limited.loop.run()
    except Refusal as refusal:
        sys.exit(f"limited.py: {refusal}")
    except GLib.Error as error:
        sys.exit(f"limited.py: no broker at {options.broker}: {error.message}")
    sys.exit(limited.status)


if __name__ == "__main__":
    main()
