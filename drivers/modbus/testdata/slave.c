/* A Modbus slave by libmodbus whose registers name their address.
 *
 * usage: slave rtu DEVICE BAUD | tcp PORT
 *
 * Unit 2, registers 0 to 1999. Register a holds 7 a + 512 + f, where f is the
 * function that reads it, 3 or 4. Coils 0 to 1999 are off. "ready" and the TCP port are printed when it
 * serves.
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { UNIT = 2, SIZE = 2000 };

static int fail(const char *what) {
	fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
	return 1;
}

static void serve(modbus_t *m, modbus_mapping_t *map, int rtu) {
	uint8_t request[MODBUS_TCP_MAX_ADU_LENGTH];
	for (;;) {
		int n = modbus_receive(m, request);
		if (n > 0)
			modbus_reply(m, request, n, map);
		else if (n < 0 && !rtu)
			return; /* the master hung up */
	}
}

int main(int argc, char **argv) {
	if (argc < 3)
		return 2;
	int rtu = !strcmp(argv[1], "rtu");
	modbus_t *m = rtu ? modbus_new_rtu(argv[2], atoi(argv[3]), 'N', 8, 1) : modbus_new_tcp("127.0.0.1", atoi(argv[2]));
	modbus_mapping_t *map = modbus_mapping_new(SIZE, 0, SIZE, SIZE);
	if (!m || !map || modbus_set_slave(m, UNIT))
		return fail("new");
	for (int a = 0; a < SIZE; a++) {
		map->tab_registers[a] = 7 * a + 256 * UNIT + 3;
		map->tab_input_registers[a] = 7 * a + 256 * UNIT + 4;
	}
	if (rtu) {
		if (modbus_connect(m))
			return fail("connect");
		puts("ready 0");
		fflush(stdout);
		serve(m, map, rtu);
	}
	int listener = modbus_tcp_listen(m, 1);
	struct sockaddr_in at;
	socklen_t size = sizeof at;
	if (listener < 0 || getsockname(listener, (struct sockaddr *)&at, &size))
		return fail("listen");
	printf("ready %d\n", ntohs(at.sin_port));
	fflush(stdout);
	while (modbus_tcp_accept(m, &listener) >= 0) {
		serve(m, map, rtu);
		modbus_close(m);
	}
	return fail("accept");
}
