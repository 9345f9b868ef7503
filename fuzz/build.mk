# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# The fuzz targets, compiled by clang with libFuzzer, AddressSanitizer and
# UndefinedBehaviorSanitizer, and with all of the library in them; fuzz/run
# calls this with TOP (the source), BUILD (a configured build: config.h) and
# TARGETS, in the directory where things go.  It is no part of the ordinary
# build.

CLANG ?= clang
PACKAGES = libnbd gnutls jansson libxxhash libxml-2.0
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all

CPPFLAGS := -D_GNU_SOURCE -I$(BUILD) -I$(TOP)/lib -I$(TOP)/fuzz \
	-I$(TOP)/tests/unit $(shell pkg-config --cflags $(PACKAGES))
CFLAGS := -std=gnu11 -g -O1 -fno-omit-frame-pointer -pthread \
	-Wall -Wextra -Wshadow $(SANITIZE)
LDLIBS := $(shell pkg-config --libs $(PACKAGES)) -pthread

SOURCES := $(filter-out $(TOP)/lib/nbd/remote-load.c, \
	$(wildcard $(TOP)/lib/*/*.c $(TOP)/lib/*/*/*.c)) \
	$(TOP)/fuzz/remote-load.c \
	$(TOP)/tests/unit/dev-fault.c $(TOP)/tests/unit/fvd-reader.c \
	$(TOP)/fuzz/common.c $(TARGETS:%=$(TOP)/fuzz/%.c)
OBJECTS := $(SOURCES:$(TOP)/%.c=%.o)

all: seeds $(TARGETS:%=fuzz-%)

VPATH = $(TOP)

# libFuzzer looks at what the library does, not at what the targets do.
lib/%.o: CFLAGS += -fsanitize=fuzzer-no-link

%.o: %.c
	@mkdir -p $(@D)
	$(CLANG) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

fuzz-%: $(OBJECTS) $(TOP)/fuzz/driver.c
	$(CLANG) $(CPPFLAGS) $(CFLAGS) -DTARGET=fuzz_$* -fsanitize=fuzzer -o $@ \
	  $(TOP)/fuzz/driver.c $(OBJECTS) $(LDLIBS)

seeds: $(OBJECTS) fuzz/seeds.o
	$(CLANG) $(CFLAGS) -o $@ fuzz/seeds.o $(OBJECTS) $(LDLIBS)

.PHONY: all
-include $(OBJECTS:.o=.d)
