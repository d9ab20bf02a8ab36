/* The C ABI from an installed tree. */
#include <bitpager.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  printf("bitpager %s\n", bp_version());
  return strchr(bp_version(), '.') != NULL ? 0 : 1;
}
