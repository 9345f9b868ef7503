/* SPDX-License-Identifier: BSD-3-Clause */
/* Copyright (C) 2026 The nbdchain authors */

/* Finds the slots of an imported function in the relocation table of the main
 * program, and writes another address to them. */

#include <config.h>

#include "serve/import.h"

#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if __ELF_NATIVE_CLASS == 64
#define R_SYM(info) ELF64_R_SYM (info)
#else
#define R_SYM(info) ELF32_R_SYM (info)
#endif

struct program {
  ElfW (Addr) base;
  ElfW (Addr) relro, relro_end; /* read-only once relocated */
  const ElfW (Dyn) *dynamic;
  const ElfW (Sym) *symbols;
  const char *names;
};

struct replacement {
  const char *name;
  void *function;
  bool done;
};

/* The value of the dynamic entry TAG; 0: there is none. */
static ElfW (Addr)
dynamic_value (const struct program *p, ElfW (Sxword) tag)
{
  for (const ElfW (Dyn) *d = p->dynamic; d->d_tag != DT_NULL; ++d)
    if (d->d_tag == tag)
      return d->d_un.d_ptr;
  return 0;
}

/* The same for an address, which not every loader relocates. */
static ElfW (Addr)
dynamic_address (const struct program *p, ElfW (Sxword) tag)
{
  const ElfW (Addr) value = dynamic_value (p, tag);

  return value != 0 && value < p->base ? value + p->base : value;
}

static bool
write_slot (const struct program *p, ElfW (Addr) slot, void *function)
{
  const ElfW (Addr) page_size = sysconf (_SC_PAGESIZE);
  void *page = (void *) (slot & ~(page_size - 1));
  const bool protected = slot >= p->relro && slot < p->relro_end;

  if (protected && mprotect (page, page_size, PROT_READ | PROT_WRITE) == -1)
    return false;
  *(void **) slot = function;
  if (protected)
    mprotect (page, page_size, PROT_READ);
  return true;
}

static void
replace_in (const struct program *p, ElfW (Addr) table, size_t size,
            size_t entry_size, struct replacement *r)
{
  for (size_t i = 0; table != 0 && i + entry_size <= size; i += entry_size) {
    /* Elf_Rela begins as Elf_Rel does. */
    const ElfW (Rel) *rel = (const ElfW (Rel) *) (table + i);
    const ElfW (Sym) *symbol = &p->symbols[R_SYM (rel->r_info)];

    if (R_SYM (rel->r_info) != 0 && symbol->st_shndx == SHN_UNDEF &&
        strcmp (p->names + symbol->st_name, r->name) == 0 &&
        write_slot (p, p->base + rel->r_offset, r->function))
      r->done = true;
  }
}

/* Called for the main program first, and then no more. */
static int
visit (struct dl_phdr_info *info, size_t size __attribute__ ((__unused__)),
       void *opaque)
{
  struct replacement *r = opaque;
  struct program p = { .base = info->dlpi_addr };

  for (unsigned i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW (Phdr) *phdr = &info->dlpi_phdr[i];
    const ElfW (Addr) address = p.base + phdr->p_vaddr;

    if (phdr->p_type == PT_DYNAMIC)
      p.dynamic = (const ElfW (Dyn) *) address;
    if (phdr->p_type == PT_GNU_RELRO) {
      p.relro = address;
      p.relro_end = address + phdr->p_memsz;
    }
  }
  if (p.dynamic == NULL)
    return 1;
  p.symbols = (const ElfW (Sym) *) dynamic_address (&p, DT_SYMTAB);
  p.names = (const char *) dynamic_address (&p, DT_STRTAB);
  if (p.symbols == NULL || p.names == NULL)
    return 1;
  replace_in (&p, dynamic_address (&p, DT_JMPREL),
              dynamic_value (&p, DT_PLTRELSZ),
              dynamic_value (&p, DT_PLTREL) == DT_RELA ?
              sizeof (ElfW (Rela)) : sizeof (ElfW (Rel)), r);
  replace_in (&p, dynamic_address (&p, DT_RELA),
              dynamic_value (&p, DT_RELASZ), sizeof (ElfW (Rela)), r);
  replace_in (&p, dynamic_address (&p, DT_REL),
              dynamic_value (&p, DT_RELSZ), sizeof (ElfW (Rel)), r);
  return 1;
}

bool
nc_import_replace (const char *name, void *function)
{
  struct replacement r = { .name = name, .function = function };

  dl_iterate_phdr (visit, &r);
  return r.done;
}
