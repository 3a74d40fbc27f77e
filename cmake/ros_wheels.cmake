# Lets the interfaces build against the ROS wheels of PyPI. pip's build passes
# this file as CMAKE_PROJECT_INCLUDE; on a ROS installation it changes nothing.

# Look where Python finds rosidl first: <prefix>/lib/python3.x/site-packages.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND "${Python3_EXECUTABLE}" -c
    "import pathlib, rosidl_adapter; print(pathlib.Path(rosidl_adapter.__file__).parents[4].as_posix())"
  OUTPUT_VARIABLE _prefix OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(PREPEND CMAKE_PREFIX_PATH "${_prefix}")
if("$ENV{AMENT_PREFIX_PATH}" STREQUAL "")
  set(ENV{AMENT_PREFIX_PATH} "${_prefix}")
else()
  set(ENV{AMENT_PREFIX_PATH} "${_prefix}:$ENV{AMENT_PREFIX_PATH}")
endif()

# The wheels export include directories of the machine that built them
# (/opt/python/...). Drop those that do not exist here, once all are found.
function(_ros_wheels_drop_missing_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(dirs)
      set(kept "")
      foreach(dir IN LISTS dirs)
        if(dir MATCHES "^\\$<" OR EXISTS "${dir}")
          list(APPEND kept "${dir}")
        endif()
      endforeach()
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
    endif()
  endforeach()
endfunction()

# An environment inside the source tree (.venv) puts numpy's headers there, and
# CMake refuses to export such a path: only the build needs it.
function(_ros_wheels_hide_environment)
  set(target ${PROJECT_NAME}__rosidl_generator_py)
  if(TARGET ${target})
    get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
    list(TRANSFORM dirs REPLACE "^(${CMAKE_SOURCE_DIR}/.+)$" "$<BUILD_INTERFACE:\\1>")
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${dirs}")
  endif()
endfunction()
cmake_language(DEFER CALL _ros_wheels_drop_missing_includes)
cmake_language(DEFER CALL _ros_wheels_hide_environment)
