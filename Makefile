# make          builds everything for release
# make demo     as root on a fresh Debian: builds, and a user without privilege boots two Debian containers in a scratch place
# make check    as root: runs every test; the last line is `N passed, N failed`
# make lint     style: rustfmt, clippy, cargo-deny if it is there
# make bench    as root: speed and size, beside the peers that are installed
# make reference  writes docs/reference.md and the manual page cgrant-dbus(7) anew, of dbus/*.xml
# make install  DESTDIR= PREFIX=/usr/local
# make deb      Debian packages in target/deb, of the release build or of the programs in BIN_DIR
# make rpm      the same for rpm, in target/rpm

PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
CARGO ?= cargo
RPMBUILD ?= rpmbuild
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
# Where the programs to be installed are.
BIN_DIR ?= $(TARGET_DIR)/release
# One that runs here: it writes completions and manual pages, also when the programs are for another machine.
CGRANT ?= $(BIN_DIR)/cgrant

bindir := $(PREFIX)/bin
sbindir := $(PREFIX)/sbin
libexecdir := $(PREFIX)/libexec/cgrant
datadir := $(PREFIX)/share
docdir := $(datadir)/doc/cgrant
unitdir := $(PREFIX)/lib/systemd/system
userunitdir := $(PREFIX)/lib/systemd/user
mandir := $(datadir)/man
# Where libpam looks for modules, if PREFIX is /usr; else the service's file names the module with its whole path.
pamdir := $(PREFIX)/lib/$(shell gcc -print-multiarch 2>/dev/null)/security
bashdir := $(datadir)/bash-completion/completions
fishdir := $(datadir)/fish/vendor_completions.d
# Debian's zsh looks for what packages bring in a directory of its own.
ifeq ($(PREFIX),/usr)
zshdir := $(datadir)/zsh/vendor-completions
else
zshdir := $(datadir)/zsh/site-functions
endif
# dbus-daemon reads policies in /usr/share and in /etc, not in /usr/local.
ifeq ($(PREFIX),/usr)
dbusconfdir := /usr/share/dbus-1/system.d
else
dbusconfdir := $(SYSCONFDIR)/dbus-1/system.d
endif

# polkitd reads actions below /usr only.
polkitdir := /usr/share/polkit-1/actions

DEPS_BUILD := gcc libc6-dev libpam0g ca-certificates
DEPS_DEB := debhelper dh-apparmor dpkg-dev lintian
DEPS_RPM := file rpm rpmlint
DEPS_DEMO := busybox-static dnsmasq-base iproute2 mmdebstrap nftables procps util-linux
DEPS_CHECK := $(DEPS_DEB) $(DEPS_RPM) bsdutils busybox-static dbus dnsmasq-base e2fsprogs groff-base iproute2 libdbus-1-dev libglib2.0-bin mmdebstrap nftables openssl pkg-config polkitd procps python3-gi qemu-system-x86 qemu-utils \
	strace systemd uidmap util-linux xz-utils zstd
DEPS_BENCH := bubblewrap busybox-static crun dbus dnsmasq-base iperf3 iproute2 lxc mmdebstrap nftables passt podman runc slirp4netns strace \
	systemd-container uidmap util-linux

.PHONY: all rust demo reference check check-unit check-integration check-vm bench lint install install-files deb deb-unchecked rpm rpm-unchecked clean
.PHONY: deps-build deps-deb deps-rpm deps-demo deps-check deps-bench

# The module apart: what libpam is needed for is compiled into nothing else.
all: rust
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked -p cgrant-pam

# A compiler that is new enough; where Debian has one, `deps-build` installs it.
rust:
	@tests/demo/rust $(CARGO)

deps-build:
	@tests/demo/packages $(DEPS_BUILD)
	@tests/demo/rust $(CARGO) install

deps-deb: deps-build
	@tests/demo/packages $(DEPS_DEB)

deps-rpm: deps-build
	@tests/demo/packages $(DEPS_RPM)

deps-demo: deps-build
	@tests/demo/packages $(DEPS_DEMO)

deps-check: deps-build
	@tests/demo/packages $(DEPS_CHECK)

deps-bench: deps-build
	@tests/demo/packages $(DEPS_BENCH)

demo: deps-demo
	$(CARGO) build --locked
	$(CARGO) build --locked -p cgrant-pam
	@tests/demo/run $(TARGET_DIR)/debug $(TARGET_DIR)/demo

# One virtual machine after the other runs beside the other tests, which leave a processor idle; check-vm goes on with those that are
# left. If not even the first could begin, check-vm tries again and says why.
check: deps-check
	@mkdir -p $(TARGET_DIR)/vm
	@rm -rf $(TARGET_DIR)/vm/ahead.*
	@ahead=$$(mktemp -d $(abspath $(TARGET_DIR))/vm/ahead.XXXXXX) && \
	{ nice -n 19 tests/vm/run --ahead $$ahead >$$ahead/log 2>&1 & CGRANT_VM_AHEAD=$$ahead tests/demo/tally check-unit check-integration check-vm; }

# The member crates: units, the supervisor with children that are played, the network helper that can be made to fail.
check-unit:
	$(CARGO) test --workspace --exclude cgrant --locked --no-fail-fast
	$(CARGO) test -p cgrant-net --features fault-injection --test privileged --locked

# The broker as a whole on this machine, in a build that can be made to fail at every step.
check-integration:
	$(CARGO) test -p cgrant --features fault-injection --locked --no-fail-fast

# The same on every kind of host.
check-vm:
	tests/vm/run

# The reference of the D-Bus interface, of dbus/*.xml.
reference:
	CGRANT_WRITE_REFERENCE=1 $(CARGO) test -p cgrant-proto --locked --test reference

lint: rust
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features fault-injection --locked -- -D warnings
	@# Not one of all targets: `cargo test` is not to run it.
	$(CARGO) clippy --test hosts --features fault-injection --locked -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --locked check; \
	else echo "cargo-deny is not installed: licences, sources and advisories of the dependencies are not checked"; fi

bench: deps-bench
	$(CARGO) build --release --locked
	CGRANT_TEST_BIN=$(abspath $(TARGET_DIR)/release) $(CARGO) bench --profile dev --features fault-injection --locked --bench bench

install: all install-files

install-files:
	install -d -m 755 $(DESTDIR)$(bindir) $(DESTDIR)$(sbindir) $(DESTDIR)$(libexecdir)
	install -m 755 $(BIN_DIR)/cgrant $(DESTDIR)$(bindir)/
	ln -sf cgrant $(DESTDIR)$(bindir)/cgm
	install -m 755 $(BIN_DIR)/cgrantd $(BIN_DIR)/cgproxy $(DESTDIR)$(sbindir)/
	install -m 755 $(BIN_DIR)/cgrant-engine $(BIN_DIR)/cgrant-front $(BIN_DIR)/cgrant-net $(BIN_DIR)/cgrant-scope $(DESTDIR)$(libexecdir)/
	install -d -m 755 $(DESTDIR)$(pamdir)
	install -m 644 $(BIN_DIR)/libpam_cgrant.so $(DESTDIR)$(pamdir)/pam_cgrant.so
	install -d -m 755 $(DESTDIR)$(dbusconfdir) $(DESTDIR)$(datadir)/dbus-1/system-services $(DESTDIR)$(datadir)/dbus-1/interfaces
	install -m 644 dbus/org.cgrant.Broker1.conf $(DESTDIR)$(dbusconfdir)/
	install -m 644 dbus/org.cgrant.Broker1.service $(DESTDIR)$(datadir)/dbus-1/system-services/
	install -m 644 dbus/*.xml $(DESTDIR)$(datadir)/dbus-1/interfaces/
	install -d -m 755 $(DESTDIR)$(polkitdir)
	install -m 644 policy/org.cgrant.broker1.policy $(DESTDIR)$(polkitdir)/
	install -d -m 755 $(DESTDIR)$(unitdir) $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
	sed 's|@sbindir@|$(sbindir)|' systemd/cgrantd.service >$(DESTDIR)$(unitdir)/cgrantd.service
	chmod 644 $(DESTDIR)$(unitdir)/cgrantd.service
	sed 's|@sbindir@|$(sbindir)|' systemd/cgrant-shutdown.service >$(DESTDIR)$(unitdir)/cgrant-shutdown.service
	chmod 644 $(DESTDIR)$(unitdir)/cgrant-shutdown.service
	sed 's|@bindir@|$(bindir)|' systemd/cgrant-departed.service >$(DESTDIR)$(unitdir)/cgrant-departed.service
	chmod 644 $(DESTDIR)$(unitdir)/cgrant-departed.service
	sed 's|@bindir@|$(bindir)|' systemd/cgrant-disk.service >$(DESTDIR)$(unitdir)/cgrant-disk.service
	chmod 644 $(DESTDIR)$(unitdir)/cgrant-disk.service
	install -m 644 systemd/cgrantd.socket systemd/cgrant-departed.path systemd/cgrant-departed.timer systemd/cgrant-disk.timer $(DESTDIR)$(unitdir)/
	install -m 644 systemd/cgrant.sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/cgrant.conf
	install -m 644 systemd/cgrant.tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/cgrant.conf
	install -d -m 755 $(DESTDIR)$(userunitdir)
	sed 's|@bindir@|$(bindir)|' systemd/cgrant-autostart.service >$(DESTDIR)$(userunitdir)/cgrant-autostart.service
	chmod 644 $(DESTDIR)$(userunitdir)/cgrant-autostart.service
	install -d -m 755 $(DESTDIR)$(bashdir) $(DESTDIR)$(zshdir) $(DESTDIR)$(fishdir)
	$(CGRANT) completions bash >$(DESTDIR)$(bashdir)/cgrant
	$(CGRANT) completions zsh >$(DESTDIR)$(zshdir)/_cgrant
	$(CGRANT) completions fish >$(DESTDIR)$(fishdir)/cgrant.fish
	chmod 644 $(DESTDIR)$(bashdir)/cgrant $(DESTDIR)$(zshdir)/_cgrant $(DESTDIR)$(fishdir)/cgrant.fish
	install -d -m 755 $(DESTDIR)$(mandir)/man1 $(DESTDIR)$(mandir)/man5 $(DESTDIR)$(mandir)/man7 $(DESTDIR)$(mandir)/man8
	$(CGRANT) manual $(DESTDIR)$(mandir)/man1
	mv $(DESTDIR)$(mandir)/man1/cgrant*.5 $(DESTDIR)$(mandir)/man5/
	chmod 644 $(DESTDIR)$(mandir)/man1/cgrant*.1 $(DESTDIR)$(mandir)/man5/cgrant*.5
	install -m 644 docs/man/*.1 $(DESTDIR)$(mandir)/man1/
	install -m 644 docs/man/*.7 $(DESTDIR)$(mandir)/man7/
	install -m 644 docs/man/*.8 $(DESTDIR)$(mandir)/man8/
	install -d -m 755 $(DESTDIR)$(SYSCONFDIR)/cgrant/policy.d $(DESTDIR)$(docdir)/examples/policy.d
	install -m 644 README.md SECURITY.md LICENSE docs/*.md $(DESTDIR)$(docdir)/
	install -m 644 policy/default.toml $(DESTDIR)$(docdir)/policy-default.toml
	install -m 644 policy/strict.toml $(DESTDIR)$(docdir)/policy-strict.toml
	install -m 644 examples/*.toml $(DESTDIR)$(docdir)/examples/
	install -m 644 examples/policy.d/*.toml $(DESTDIR)$(docdir)/examples/policy.d/
	install -d -m 755 $(DESTDIR)$(docdir)/examples/python
	install -m 755 examples/python/limited.py $(DESTDIR)$(docdir)/examples/python/

# Of programs that are there already, so that nothing is compiled; `dpkg-buildpackage` compiles. Nothing is written outside the target directory.
deb: deb-unchecked
	cd $(TARGET_DIR)/deb && lintian --fail-on error,warning *.deb

ifeq ($(BIN_DIR),$(TARGET_DIR)/release)
deb-unchecked: all
endif
deb-unchecked: deps-deb
	@rm -rf $(TARGET_DIR)/deb
	@install -d $(TARGET_DIR)/deb/source
	@cp -r debian $(TARGET_DIR)/deb/source/
	cd $(TARGET_DIR)/deb/source && CGRANT_SOURCE=$(CURDIR) CGRANT_BIN=$(abspath $(BIN_DIR)) DEB_BUILD_PROFILES=pkg.cgrant.built \
		dpkg-buildpackage --build=binary --no-sign
	@rm -rf $(TARGET_DIR)/deb/source

# With systemd's macros where the host's rpm has them, as Fedora's has. Debian's makes a database in the home of whoever calls it for anything.
rpm: rpm-unchecked
	HOME=$(abspath $(TARGET_DIR))/rpm/home rpmlint --config rpm/rpmlint.toml --strict $(TARGET_DIR)/rpm/*.rpm
	@rm -rf $(TARGET_DIR)/rpm/home

ifeq ($(BIN_DIR),$(TARGET_DIR)/release)
rpm-unchecked: all
endif
rpm-unchecked: deps-rpm
	@rm -rf $(TARGET_DIR)/rpm
	$(RPMBUILD) -bb --quiet --nodeps $$(rpm --eval '%{!?_unitdir:--load=rpm/macros.debian}') --define "_topdir $(abspath $(TARGET_DIR))/rpm/build" \
		--define "_dbpath %{_topdir}/db" --define "_tmppath %{_topdir}/tmp" \
		--define "_rpmdir $(abspath $(TARGET_DIR))/rpm" --define "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
		--define "cgrant_source $(CURDIR)" --define "cgrant_bin $(abspath $(BIN_DIR))" rpm/cgrant.spec
	@rm -rf $(TARGET_DIR)/rpm/build

clean:
	$(CARGO) clean
