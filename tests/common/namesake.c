/* Has a process with the number that is said, which must be free, and with a uid and gid that are said. Says "ready" when that is
   there. Both end together. */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	pid_t number = argc > 2 ? atoi(argv[1]) : 0, child;
	unsigned int id = argc > 2 ? (unsigned int)strtoul(argv[2], NULL, 10) : 0;
	struct clone_args args = {
		.exit_signal = SIGCHLD,
		.set_tid = (unsigned long)&number,
		.set_tid_size = 1,
	};

	child = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (child < 0) {
		perror("clone3");
		return 1;
	}
	if (child == 0) {
		/* After the ids: with them the kernel forgets it. */
		if (setresgid(id, id, id) || setresuid(id, id, id) || prctl(PR_SET_PDEATHSIG, SIGKILL))
			_exit(1);
		puts("ready");
		fflush(stdout);
		for (;;)
			pause();
	}
	waitpid(child, NULL, 0);
	return 1;
}
