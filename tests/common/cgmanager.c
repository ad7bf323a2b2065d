/* A client of CGManager's interface on libdbus, as programs have it that were written for CGManager: ADDRESS NAME. In the cgroup
 * that it runs in it makes another one of that name, and says what each call came to. */
#define _GNU_SOURCE
#include <dbus/dbus.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define OBJECT "/org/linuxcontainers/cgmanager"
#define INTERFACE "org.linuxcontainers.cgmanager0_0"
#define CONTROLLER "memory"

static DBusConnection *connection;
static int pair[2];
static pid_t child;
static int to_child[2];

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static DBusMessage *send_call(DBusMessage *call, DBusError *error)
{
	DBusMessage *reply = dbus_connection_send_with_reply_and_block(connection, call, 30000, error);

	dbus_message_unref(call);
	return reply;
}

static DBusMessage *new_call(const char *method)
{
	return dbus_message_new_method_call(NULL, OBJECT, INTERFACE, method);
}

/* Calls a method with strings; exits if it fails. */
static DBusMessage *call(const char *method, ...)
{
	DBusError error = DBUS_ERROR_INIT;
	DBusMessage *message = new_call(method), *reply;
	const char *text;
	va_list list;

	va_start(list, method);
	while ((text = va_arg(list, const char *)))
		dbus_message_append_args(message, DBUS_TYPE_STRING, &text, DBUS_TYPE_INVALID);
	va_end(list);
	reply = send_call(message, &error);
	if (!reply) {
		printf("error %s: %s\n", error.name, error.message);
		dbus_error_free(&error);
	}
	return reply;
}

static void credentials(int socket, pid_t pid)
{
	struct ucred *said;
	char byte = 'p', space[CMSG_SPACE(sizeof(*said))] = { 0 };
	struct iovec piece = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_CREDENTIALS;
	header->cmsg_len = CMSG_LEN(sizeof(*said));
	said = (struct ucred *)CMSG_DATA(header);
	said->pid = pid;
	said->uid = getuid();
	said->gid = getgid();
	if (sendmsg(socket, &message, 0) != 1)
		fail("sendmsg");
}

/* A process that says who it is when it is told to, and nothing else. */
static void start_child(void)
{
	char byte;

	if (pipe(to_child) || (child = fork()) < 0)
		fail("fork");
	if (child)
		return;
	close(to_child[1]);
	while (read(to_child[0], &byte, 1) == 1)
		credentials(pair[0], getpid());
	_exit(0);
}

static void expect_kick(void)
{
	char byte = 0;

	if (recv(pair[0], &byte, 1, 0) != 1 || byte != '1')
		fail("no kick");
}

/* An Scm call up to its result: one's own credentials, and then the child's if it is about the child. */
static void scm(const char *method, const char *path, const char *key, int recursive, int of_child)
{
	DBusError error = DBUS_ERROR_INIT;
	const char *controller = CONTROLLER;
	DBusMessage *message = new_call(method), *reply;

	dbus_message_append_args(message, DBUS_TYPE_STRING, &controller, DBUS_TYPE_INVALID);
	if (path)
		dbus_message_append_args(message, DBUS_TYPE_STRING, &path, DBUS_TYPE_INVALID);
	if (key)
		dbus_message_append_args(message, DBUS_TYPE_STRING, &key, DBUS_TYPE_INVALID);
	if (recursive >= 0)
		dbus_message_append_args(message, DBUS_TYPE_INT32, &recursive, DBUS_TYPE_INVALID);
	dbus_message_append_args(message, DBUS_TYPE_UNIX_FD, &pair[1], DBUS_TYPE_INVALID);
	reply = send_call(message, &error);
	if (!reply) {
		printf("%s: error %s: %s\n", method, error.name, error.message);
		exit(1);
	}
	dbus_message_unref(reply);
	expect_kick();
	credentials(pair[0], getpid());
	if (of_child) {
		expect_kick();
		if (write(to_child[1], "", 1) != 1)
			fail("write");
	}
}

static void say_byte(const char *method)
{
	char byte = 0;

	if (recv(pair[0], &byte, 1, 0) != 1)
		fail(method);
	printf("%s %c\n", method, byte);
}

static void say_text(const char *method)
{
	char text[4096];
	ssize_t length = recv(pair[0], text, sizeof(text), 0);

	if (length <= 0 || text[length - 1])
		fail(method);
	printf("%s %s\n", method, text);
}

static void say_task(const char *method)
{
	int count = 0;
	struct ucred *said;
	char byte, space[CMSG_SPACE(sizeof(*said))];
	struct iovec piece = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space) };

	if (recv(pair[0], &count, sizeof(count), 0) != sizeof(count) || count != 1)
		fail(method);
	if (recvmsg(pair[0], &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
		fail(method);
	said = (struct ucred *)CMSG_DATA(CMSG_FIRSTHDR(&message));
	printf("%s %s\n", method, said->pid == child ? "itself" : "another");
}

static void say_number(const char *method, DBusMessage *reply)
{
	dbus_int32_t number = 0;

	if (!reply || !dbus_message_get_args(reply, NULL, DBUS_TYPE_INT32, &number, DBUS_TYPE_INVALID))
		exit(1);
	printf("%s %d\n", method, number);
	dbus_message_unref(reply);
}

static void say_string(const char *method, DBusMessage *reply)
{
	const char *text = NULL;

	if (!reply || !dbus_message_get_args(reply, NULL, DBUS_TYPE_STRING, &text, DBUS_TYPE_INVALID))
		exit(1);
	printf("%s %s\n", method, text);
	dbus_message_unref(reply);
}

static void plain_calls(const char *name)
{
	const char *key = "notify_on_release";
	char **names = NULL;
	int i, number = 0;
	DBusMessage *reply;

	say_number("Create", call("Create", CONTROLLER, name, NULL));
	say_number("Create", call("Create", CONTROLLER, name, NULL));
	say_string("GetValue", call("GetValue", CONTROLLER, name, key, NULL));
	key = "memory.swappiness";
	reply = call("SetValue", CONTROLLER, name, key, "1", NULL);
	if (!reply)
		exit(1);
	printf("SetValue\n");
	dbus_message_unref(reply);
	say_string("GetValue", call("GetValue", CONTROLLER, name, key, NULL));
	reply = call("ListChildren", CONTROLLER, "", NULL);
	if (!reply || !dbus_message_get_args(reply, NULL, DBUS_TYPE_ARRAY, DBUS_TYPE_STRING, &names, &number, DBUS_TYPE_INVALID))
		exit(1);
	for (i = 0; i < number; i++)
		if (!strcmp(names[i], name))
			printf("ListChildren %s\n", names[i]);
	dbus_free_string_array(names);
	dbus_message_unref(reply);
	call("Create", CONTROLLER, "..", NULL);
}

static void scm_calls(const char *name)
{
	dbus_int32_t *tasks = NULL;
	int number = 0;
	char path[256];
	DBusMessage *reply;

	snprintf(path, sizeof(path), "%s/scm", name);
	scm("CreateScm", path, NULL, -1, 0);
	say_byte("CreateScm");
	scm("CreateScm", path, NULL, -1, 0);
	say_byte("CreateScm");
	scm("GetValueScm", name, "memory.swappiness", -1, 0);
	say_text("GetValueScm");
	scm("MovePidScm", path, NULL, -1, 1);
	say_byte("MovePidScm");
	scm("GetPidCgroupScm", NULL, NULL, -1, 1);
	say_text("GetPidCgroupScm");
	scm("GetTasksScm", path, NULL, -1, 0);
	say_task("GetTasksScm");
	reply = call("GetTasks", CONTROLLER, path, NULL);
	if (!reply || !dbus_message_get_args(reply, NULL, DBUS_TYPE_ARRAY, DBUS_TYPE_INT32, &tasks, &number, DBUS_TYPE_INVALID))
		exit(1);
	printf("GetTasks %d\n", number == 1 && tasks[0] == child);
	dbus_message_unref(reply);
	scm("MovePidScm", "", NULL, -1, 1);
	say_byte("MovePidScm");
	scm("RemoveScm", path, NULL, 1, 0);
	say_byte("RemoveScm");
}

int main(int argc, char **argv)
{
	DBusError error = DBUS_ERROR_INIT;
	DBusMessage *ping = new_call("Ping");
	dbus_int32_t number = 0;
	int on = 1;

	if (argc != 3 || socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return 2;
	if (setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) || setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
		fail("SO_PASSCRED");
	setlinebuf(stdout);
	start_child();
	connection = dbus_connection_open_private(argv[1], &error);
	if (!connection) {
		printf("no connection: %s\n", error.message);
		return 1;
	}
	/* libdbus negotiates descriptors with the first call. */
	dbus_message_append_args(ping, DBUS_TYPE_INT32, &number, DBUS_TYPE_INVALID);
	if (!send_call(ping, &error)) {
		printf("no answer: %s\n", error.message);
		return 1;
	}
	plain_calls(argv[2]);
	scm_calls(argv[2]);
	close(to_child[1]);
	waitpid(child, NULL, 0);
	dbus_connection_close(connection);
	return 0;
}
