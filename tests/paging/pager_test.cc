#include "tests/paging/driver.h"
