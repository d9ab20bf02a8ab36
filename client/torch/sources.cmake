# The sources of the libtorch optimizers, here and where they are installed.
set(BITPAGER_TORCH_SOURCES
    arenas.cc options.cc paged_optimizer.cc sessions.cc shared_storage.cc step_request.cc tensors.cc)
