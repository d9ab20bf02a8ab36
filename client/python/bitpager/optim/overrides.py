"""GlobalOptimManager: settings for single parameters, under the name and methods that bitsandbytes users type."""

from __future__ import annotations

import weakref

import torch


class GlobalOptimManager:
    """Holds settings that override those of a parameter's group: lr, betas, eps, weight_decay, and before the first
    step optim_bits and min_8bit_size."""

    _instance = None

    def __init__(self):
        raise RuntimeError("call GlobalOptimManager.get_instance()")

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The one instance of this process."""
        if cls._instance is None:
            cls._instance = object.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def initialize(self) -> None:
        """Forgets every override."""
        self._by_parameter = {}  # id -> (weak reference, settings)
        self._by_place = {}  # (group, position) -> settings
        self._by_attribute = []  # (module, name, settings)

    def register_parameters(self, params) -> None:
        """Remembers the places of the overridden parameters in `params` (an iterable of parameters or of groups), for
        optimizers that get other objects in the same places."""
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group_index, group in enumerate(groups):
            for index, parameter in enumerate(group["params"]):
                settings = self._of_parameter(parameter)
                if settings:
                    self._by_place[(group_index, index)] = settings

    def override_config(self, parameters, key=None, value=None, key_value_dict=None) -> None:
        """override_config(p, "optim_bits", 32) or override_config([p, q], key_value_dict={...})."""
        if key is not None:
            if key_value_dict is not None:
                raise ValueError("give either key and value, or key_value_dict")
            key_value_dict = {key: value}
        if not key_value_dict:
            raise ValueError("override_config needs a key and a value")
        if isinstance(parameters, torch.Tensor):
            parameters = [parameters]
        for parameter in parameters:
            settings = dict(self._of_parameter(parameter), **key_value_dict)
            self._by_parameter[id(parameter)] = (weakref.ref(parameter), settings)

    def register_module_override(self, module, param_name, config) -> None:
        """Overrides for the parameter `param_name` of `module`, looked up when it is used."""
        self._by_attribute.append((weakref.ref(module), param_name, dict(config)))

    @property
    def is_empty(self) -> bool:
        """Nothing is overridden."""
        return not (self._by_parameter or self._by_place or self._by_attribute)

    def settings_of(self, parameter, place) -> dict:
        """The overrides of a parameter at `place` = (group, position); {} when there are none."""
        if self.is_empty:
            return {}
        settings = dict(self._by_place.get(place, ()))
        for module, name, config in self._by_attribute:
            owner = module()
            if owner is not None and getattr(owner, name, None) is parameter:
                settings.update(config)
        settings.update(self._of_parameter(parameter))
        return settings

    def _of_parameter(self, parameter) -> dict:
        reference, settings = self._by_parameter.get(id(parameter), (None, {}))
        return settings if reference is not None and reference() is parameter else {}
