/* Keeps a lock of the socket that is its standard input, until it ends: with "receive" the one that is kept while a message is copied
 * to whoever receives it, with "set" the one that is kept while a socket filter is copied from whoever sets it. Both are copied from or
 * to memory that never comes. Says "ready" when the next message will do, or right before it sets the filter. As an unprivileged user
 * would with a file of a FUSE file system. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register missing = {
		.range = { (unsigned long)page, 4096 },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct sock_fprog filter = { .len = 1, .filter = (void *)page };

	if (faults < 0 || page == MAP_FAILED || ioctl(faults, UFFDIO_API, &api) ||
	    ioctl(faults, UFFDIO_REGISTER, &missing)) {
		perror("userfaultfd");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	if (argc > 1 && !strcmp(argv[1], "set"))
		return setsockopt(0, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) != 0;
	return recv(0, page, 1, 0) != 1;
}
