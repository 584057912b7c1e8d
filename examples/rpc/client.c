/*
 * A client of server.py in C, with the stubs that rpcgen makes from calculator.x:
 *
 *     rpcgen -h calculator.x -o calculator.h
 *     rpcgen -l calculator.x -o stubs.c
 *     rpcgen -c calculator.x -o xdr.c
 *     cc -I/usr/include/tirpc client.c stubs.c xdr.c -ltirpc -o client
 *     ./client tcp 127.0.0.1 40001 6 7
 *     ./client local /tmp/calculator.sock 0 6 7
 *
 * Port 0 asks rpcbind for the port.
 */

#include <arpa/inet.h>
#include <rpc/rpc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "calculator.h"

static CLIENT *connect_to(const char *transport, const char *host, int port)
{
    int sock = RPC_ANYSOCK;
    struct timeval retry = {1, 0};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_un path = {.sun_family = AF_UNIX};

    if (strcmp(transport, "local") == 0) {
        strncpy(path.sun_path, host, sizeof path.sun_path - 1);
        return clntunix_create(&path, CALCULATOR, CALCULATOR_1, &sock, 0, 0);
    }
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        return NULL;
    if (strcmp(transport, "udp") == 0)
        return clntudp_create(&address, CALCULATOR, CALCULATOR_1, retry, &sock);
    return clnttcp_create(&address, CALCULATOR, CALCULATOR_1, &sock, 0, 0);
}

int main(int count, char **words)
{
    if (count != 6) {
        fprintf(stderr, "usage: client tcp|udp|local HOST PORT A B\n");
        return 2;
    }
    CLIENT *client = connect_to(words[1], words[2], atoi(words[3]));
    if (client == NULL) {
        clnt_pcreateerror(words[2]);
        return 1;
    }
    client->cl_auth = authunix_create_default();

    numbers both = {atoi(words[4]), atoi(words[5])};
    double list[] = {both.a, both.b};
    values all = {2, list}, empty = {0, NULL};
    int *sum = add_1(&both, client);
    average *mean = mean_1(&all, client);
    if (sum == NULL || mean == NULL || mean->value == NULL) {
        clnt_perror(client, words[2]);
        return 1;
    }
    printf("%d %g\n", *sum, *mean->value);
    average *none = mean_1(&empty, client);
    printf("%s\n", none != NULL && none->value == NULL ? "no mean of nothing" : "failed");
    name *who = whoami_1(NULL, client);
    printf("%s\n", who == NULL ? "failed" : *who);
    return 0;
}
