#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <stdexcept>

namespace example {
namespace {

constexpr int kMaxDepth = 64;

// Recursive descent; at_ is the next byte.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = this->value(0);
    skip_space();
    if (at_ != text_.size()) refuse("the end");
    return value;
  }

 private:
  [[noreturn]] void refuse(const std::string& expected) const {
    throw std::runtime_error("must be JSON, got something else than " + expected + " at byte " +
                             std::to_string(at_));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void expect(std::string_view word) {
    skip_space();
    if (!take(word)) refuse(std::string(word));
  }

  Json value(int depth) {
    if (depth > kMaxDepth) refuse("a value less deep");
    skip_space();
    if (take("null")) return {};
    if (take("true")) return Json(true);
    if (take("false")) return Json(false);
    if (peek() == '"') return Json(string());
    if (take("[")) return array(depth);
    if (take("{")) return object(depth);
    return Json(number());
  }

  Json array(int depth) {
    Json::Array items;
    skip_space();
    if (take("]")) return Json(std::move(items));
    do {
      items.push_back(value(depth + 1));
      skip_space();
    } while (take(","));
    expect("]");
    return Json(std::move(items));
  }

  Json object(int depth) {
    Json::Object members;
    skip_space();
    if (take("}")) return Json(std::move(members));
    do {
      skip_space();
      std::string key = string();
      for (const Json::Member& other : members) {
        if (other.key == key) refuse("a new name after \"" + key + "\"");
      }
      expect(":");
      members.push_back({std::move(key), value(depth + 1)});
      skip_space();
    } while (take(","));
    expect("}");
    return Json(std::move(members));
  }

  double number() {
    const size_t begin = at_;
    take("-");
    const size_t first = at_;
    skip_digits();
    if (text_[first] == '0' && at_ > first + 1) refuse("a number without leading zeros");
    if (take(".")) skip_digits();
    if (take("e") || take("E")) {
      if (!take("-")) take("+");
      skip_digits();
    }
    double number = 0.0;
    const auto [end, error] = std::from_chars(text_.data() + begin, text_.data() + at_, number);
    if (error != std::errc() || end != text_.data() + at_) refuse("a number");
    return number;
  }

  void skip_digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == begin) refuse("a value");
  }

  std::string string() {
    if (!take("\"")) refuse("a string");
    std::string text;
    while (!take("\"")) {
      if (at_ == text_.size() || static_cast<unsigned char>(text_[at_]) < ' ') {
        refuse("the end of a string");
      }
      if (take("\\")) {
        append_escaped(text);
      } else {
        text += text_[at_++];
      }
    }
    return text;
  }

  void append_escaped(std::string& text) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kBytes = "\"\\/\b\f\n\r\t";
    if (take("u")) return append_utf8(text, code_point());
    const size_t i = kNames.find(peek());
    if (at_ == text_.size() || i == std::string_view::npos) refuse("an escape");
    text += kBytes[i];
    ++at_;
  }

  uint32_t code_point() {
    const uint32_t unit = hex_4();
    if (unit < 0xD800 || unit > 0xDFFF) return unit;
    if (unit > 0xDBFF || !take("\\u")) refuse("a surrogate pair");
    const uint32_t low = hex_4();
    if (low < 0xDC00 || low > 0xDFFF) refuse("a surrogate pair");
    return 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
  }

  uint32_t hex_4() {
    uint32_t unit = 0;
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), unit, 16);
    if (error != std::errc() || end != digits.data() + 4) refuse("four hexadecimal digits");
    at_ += 4;
    return unit;
  }

  static void append_utf8(std::string& text, uint32_t code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int num_more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t lead = num_more == 1 ? 0xC0 : num_more == 2 ? 0xE0 : 0xF0;
    text += static_cast<char>(lead | code >> 6 * num_more);
    for (int i = num_more - 1; i >= 0; --i) {
      text += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

std::optional<int64_t> whole(double number) {
  constexpr double kLast = 9007199254740992.0;  // 2^53: beyond, doubles leave numbers out
  if (!(number >= 0.0 && number < kLast) || number != std::floor(number)) return std::nullopt;
  return static_cast<int64_t>(number);
}

[[noreturn]] void refuse(std::string_view key, const char* kind) {
  throw std::runtime_error(std::string(key) + " must be " + kind + ", got none or something else");
}

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).document(); }

const Json* Json::find(std::string_view key) const {
  const Object* members = get_if<Object>();
  if (members == nullptr) return nullptr;
  for (const Member& member : *members) {
    if (member.key == key) return member.value.get_if<std::nullptr_t>() ? nullptr : &member.value;
  }
  return nullptr;
}

template <class T>
const T& Json::required(std::string_view key, const char* kind) const {
  const Json* value = find(key);
  const T* typed = value == nullptr ? nullptr : value->get_if<T>();
  if (typed == nullptr) refuse(key, kind);
  return *typed;
}

double Json::number(std::string_view key) const { return required<double>(key, "a number"); }

int64_t Json::integer(std::string_view key) const {
  constexpr const char* kKind = "a whole number from 0 up";
  const std::optional<int64_t> number = whole(required<double>(key, kKind));
  if (!number) refuse(key, kKind);
  return *number;
}

bool Json::boolean(std::string_view key, bool otherwise) const {
  return find(key) == nullptr ? otherwise : required<bool>(key, "true or false");
}

const std::string& Json::string(std::string_view key) const {
  return required<std::string>(key, "a string");
}

const Json& Json::object(std::string_view key) const {
  required<Object>(key, "an object");
  return *find(key);
}

std::vector<int64_t> Json::integers(std::string_view key) const {
  constexpr const char* kKind = "a list of whole numbers from 0 up";
  std::vector<int64_t> numbers;
  for (const Json& item : required<Array>(key, kKind)) {
    const double* number = item.get_if<double>();
    const std::optional<int64_t> integer = number ? whole(*number) : std::nullopt;
    if (!integer) refuse(key, kKind);
    numbers.push_back(*integer);
  }
  return numbers;
}

}  // namespace example
