/* As many threads as are said, of one process, which do nothing; with "processes" behind the number, as many processes. Says "ready";
   ends with its standard input. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STACK 1024

static int wait_for_ever(void *is_process)
{
	/* It has the memory of the first one, and nothing of its own that the C library could use. */
	if (is_process)
		syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		syscall(SYS_pause);
	return 0;
}

int main(int argc, char **argv)
{
	int number = argc > 1 ? atoi(argv[1]) : 0, flags, thread;
	char *stacks = mmap(NULL, (size_t)number * STACK + STACK, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (stacks == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	/* Now, when there is room on the stack for the linker to find it. */
	syscall(SYS_gettid);
	flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_SYSVSEM;
	flags |= argc > 2 ? SIGCHLD : CLONE_THREAD;
	/* This one is the first. */
	for (thread = 1; thread < number; thread++)
		if (clone(wait_for_ever, stacks + (size_t)thread * STACK, flags, argc > 2 ? argv : NULL) < 0) {
			perror("clone");
			_exit(1);
		}
	puts("ready");
	fflush(stdout);
	while (read(0, stacks, 1) > 0)
		;
	_exit(0);
}
