/* The yardstick: a plain client in C on librabbitmq, that prints one line of JSON.
 *
 *   client publish HOST PORT VHOST QUEUE COUNT SIZE WINDOW      confirmed, mandatory, persistent
 *   client consume HOST PORT VHOST QUEUE COUNT PREFETCH BATCH   one ack for BATCH deliveries
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static amqp_connection_state_t connection;

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("client: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(1);
}

static void check(const char *what) {
  if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail("%s was refused", what);
}

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec * 1e-9;
}

static double cpu(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
         (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void hang_up(void) {
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
}

static void tell(unsigned long count, double seconds, double used) {
  printf("{\"count\": %lu, \"seconds\": %.6f, \"cpu\": %.6f}\n", count, seconds, used);
}

static void reach(const char *host, int port, const char *vhost) {
  connection = amqp_new_connection();
  amqp_socket_t *tcp = amqp_tcp_socket_new(connection);
  if (amqp_socket_open(tcp, host, port) != AMQP_STATUS_OK) fail("nobody answers at %s:%d", host, port);
  amqp_rpc_reply_t reply =
      amqp_login(connection, vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("the login was refused");
  amqp_channel_open(connection, 1);
  check("the channel");
}

/* How many messages the next ack confirms; it may be one that others have overtaken. */
static unsigned long confirmed(unsigned char *acked, unsigned long *low) {
  amqp_frame_t frame;
  amqp_maybe_release_buffers(connection);
  if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("the connection is gone");
  if (frame.frame_type == AMQP_FRAME_HEARTBEAT) return 0;
  if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
    fail("a message was not kept");
  amqp_basic_ack_t *ack = frame.payload.method.decoded;
  unsigned long fresh = 0;
  unsigned long tag = ack->multiple ? *low + 1 : ack->delivery_tag;
  for (; tag <= ack->delivery_tag; tag++) fresh += !acked[tag], acked[tag] = 1;
  if (ack->multiple) *low = ack->delivery_tag;
  return fresh;
}

static void publish(const char *queue, unsigned long count, size_t size, unsigned long window) {
  amqp_confirm_select(connection, 1);
  check("confirm.select");
  amqp_bytes_t body = amqp_bytes_malloc(size);
  memset(body.bytes, 'x', size);
  /* The properties that workqueue sends, so that the broker has the same to do. */
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG |
                AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_PRIORITY_FLAG,
      .delivery_mode = 2,
      .priority = 4,
      .content_type = amqp_cstring_bytes("application/octet-stream"),
  };
  unsigned char *acked = calloc(count + 2, 1);
  unsigned long low = 0, sent = 0, safe = 0;
  char id[40];
  double began = now(), used = cpu();
  while (safe < count) {
    for (; sent < count && sent - safe < window; sent++) {
      snprintf(id, sizeof id, "%08lx-0000-7000-8000-%012lx", sent, sent);
      properties.message_id = amqp_cstring_bytes(id);
      properties.timestamp = time(NULL);
      if (amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(queue), 1, 0,
                             &properties, body) != AMQP_STATUS_OK)
        fail("the connection is gone");
    }
    safe += confirmed(acked, &low);
  }
  tell(count, now() - began, cpu() - used);
}

static void consume(const char *queue, unsigned long count, unsigned prefetch, unsigned long batch) {
  amqp_basic_qos(connection, 1, 0, prefetch, 0);
  check("basic.qos");
  double began = now(), used = cpu();
  amqp_basic_consume(connection, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0,
                     amqp_empty_table);
  check("basic.consume");
  for (unsigned long got = 1; got <= count; got++) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    if (amqp_consume_message(connection, &envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL)
      fail("no more deliveries after %lu", got - 1);
    if (got % batch == 0 || got == count) amqp_basic_ack(connection, 1, envelope.delivery_tag, 1);
    amqp_destroy_envelope(&envelope);
  }
  tell(count, now() - began, cpu() - used);
}

int main(int count, char **words) {
  if (count != 9) fail("publish|consume HOST PORT VHOST QUEUE COUNT SIZE|PREFETCH WINDOW|BATCH");
  reach(words[2], atoi(words[3]), words[4]);
  unsigned long messages = strtoul(words[6], NULL, 10);
  unsigned long first = strtoul(words[7], NULL, 10), second = strtoul(words[8], NULL, 10);
  if (strcmp(words[1], "publish") == 0) publish(words[5], messages, first, second);
  else consume(words[5], messages, first, second);
  hang_up();
  return 0;
}
